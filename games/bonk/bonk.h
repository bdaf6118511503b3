/* What every part of Bonk shares: types, registers, the memory map, and the functions of the parts. */
#ifndef BONK_H
#define BONK_H

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned int u16;
typedef int i16;

#include "memory.h"
#include "tables.h"

#define REG(address) (*(volatile u8 *)(address))
#define P1 REG(0xFF00)
#define IF REG(0xFF0F)
#define NR10 REG(0xFF10)
#define NR11 REG(0xFF11)
#define NR12 REG(0xFF12)
#define NR13 REG(0xFF13)
#define NR14 REG(0xFF14)
#define NR21 REG(0xFF16)
#define NR22 REG(0xFF17)
#define NR23 REG(0xFF18)
#define NR24 REG(0xFF19)
#define NR30 REG(0xFF1A)
#define NR31 REG(0xFF1B)
#define NR32 REG(0xFF1C)
#define NR33 REG(0xFF1D)
#define NR34 REG(0xFF1E)
#define NR41 REG(0xFF20)
#define NR42 REG(0xFF21)
#define NR43 REG(0xFF22)
#define NR44 REG(0xFF23)
#define NR50 REG(0xFF24)
#define NR51 REG(0xFF25)
#define NR52 REG(0xFF26)
#define WAVE_RAM ((volatile u8 *)0xFF30)
#define LCDC REG(0xFF40)
#define SCY REG(0xFF42)
#define SCX REG(0xFF43)
#define LY REG(0xFF44)
#define BGP REG(0xFF47)
#define OBP0 REG(0xFF48)
#define OBP1 REG(0xFF49)
#define WY REG(0xFF4A)
#define WX REG(0xFF4B)
#define IE REG(0xFFFF)

enum { PHASE_BOOT, PHASE_TITLE, PHASE_PLAY, PHASE_PAUSE, PHASE_OVER };
enum { CELL_FLOOR, CELL_WALL, CELL_BUMPER, CELL_SIGN, CELL_LOCK, CELL_GATE, CELL_KEY };
enum { KIND_NONE, KIND_BLOB, KIND_HUNTER, KIND_BOSS };
enum { OFF, MAP, ALL };
enum { KEY_RIGHT = 1, KEY_LEFT = 2, KEY_UP = 4, KEY_DOWN = 8, KEY_A = 16, KEY_B = 32, KEY_START = 128 };
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
