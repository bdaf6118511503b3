/* What every part of Bonk shares: types, registers, the memory map, and the functions of the parts. */
#ifndef BONK_H
#define BONK_H

#include "console.h"
#include "memory.h"
#include "tables.h"

enum { PHASE_BOOT, PHASE_TITLE, PHASE_PLAY, PHASE_PAUSE, PHASE_OVER };
enum { CELL_FLOOR, CELL_WALL, CELL_BUMPER, CELL_SIGN, CELL_LOCK, CELL_GATE, CELL_KEY };
enum { KIND_NONE, KIND_BLOB, KIND_HUNTER, KIND_BOSS };
enum { OFF, MAP, ALL };
enum { SFX_NONE, SFX_DING, SFX_CHARGER, SFX_HUM, SFX_DOOR, SFX_KEY, SFX_SIGN, SFX_BADGE, SFX_LEVEL, SFX_OVER, SFX_WIN };
enum { NOISE_NONE, NOISE_BONK, NOISE_HIT, NOISE_BEATEN, NOISE_HURT, NOISE_GROWL, NOISE_DASH, NOISE_BUMPER };
enum { TUNE_NONE, TUNE_SCREEN_0, TUNE_TITLE = 10, TUNE_LOST, TUNE_WON };

typedef struct {
  u8 kind, hp, timer, flash;
  u16 x, y;   /* centre, 1/256 pixel */
  i16 vx, vy; /* 1/256 pixel a frame */
  u8 spare[4];
} Actor;
#define PX(n) ((u16)(n) << 8)
#define ACTORS ((Actor *)g_actors)

/* video.c: pictures; what is queued here reaches the screen in the next vertical blank */
extern u8 shake, panel, keys, keys_new;
void video_start(void);
void frame(void);           /* end of a frame's work: wait for the vertical blank, read the buttons */
void queue(u16 to, const u8 *from, u8 count);
void sprite(u8 x, u8 y, u8 tile, u8 attributes);
void boss_sprite(u8 x, u8 y, u8 tile, u8 attributes);
void sprites_clear(void);
void draw_screen(void);     /* the map into the hidden half, then show it; 8 frames */
void draw_cell(u8 cell, u8 tile);
void draw_hud(void);
void panel_text(u8 row, const char *text);
void panel_open(void);
void panel_close(void);
void number(char *to, u16 value, u8 digits);
void title_picture(void);
void title_blink(u8 on);

/* sound.c: music on channels 2 and 3, effects on channels 1 and 4 */
void sound_silence(void);
void music_play(u8 tune);
void music_write(void);     /* first thing in the vertical blank: registers of channels 2 and 3 */
void music_step(void);      /* last thing in the vertical blank: what the next one writes */
void effects_write(void);   /* with the first line of a picture: registers of channels 1 and 4 */
void effects_step(void);    /* once a frame, after the game's own work */
void effect(u8 id);
void noise(u8 id, u8 speed);

/* play.c */
void play(void);            /* one episode, up to its end screen */
u16 random_world(void);

#endif
