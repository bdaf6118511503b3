/* A small course on foot: what its parts share. State that others read lies where Pokemon Red keeps it, so that whoever
   reads that game's memory can read this one's. Numbers of two and three bytes there begin with the high byte. */
#ifndef COURSE_H
#define COURSE_H

#include "console.h"
#include "tables.h"

#define MUSIC_CHANNEL REG(0xC026) /* the tune now playing plus 1 */
#define EFFECT_TONE REG(0xC02A)   /* the effect now playing, on channel 1 ... */
#define EFFECT_NOISE REG(0xC02D)  /* ... and on channel 4 */
#define EFFECT_NEW REG(0xC0EE)    /* the effect last asked for */
#define FACING REG(0xC109)        /* 0 down, 4 up, 8 left, 12 right */
#define RESULT REG(0xCF0B)        /* of the last fight: 0 won, 1 lost, 2 neither */
#define DIALOG REG(0xCFC4)        /* bit 0: a panel waits for A */
#define FOE_HP ((u8 *)0xCFE6)
#define FOE_LEVEL REG(0xCFF3)
#define FOE_MAX_HP ((u8 *)0xCFF4)
#define FIGHT REG(0xD057)         /* 0 none, 1 wild, 2 trainer, 255 lost */
#define PARTY_COUNT REG(0xD163)
#define SPECIES ((u8 *)0xD164)
#define MEMBER(i) ((u8 *)0xD16B + 44 * (i))
enum { AT_HP = 1, AT_XP = 14, AT_GENES = 27, AT_LEVEL = 33, AT_MAX_HP = 34 }; /* in a member */
#define OWNED ((u8 *)0xD2F7)
#define SEEN ((u8 *)0xD30A)
#define BAG_COUNT REG(0xD31D)
#define BAG ((u8 *)0xD31E)        /* item, quantity */
#define MONEY ((u8 *)0xD347)      /* three bytes, two decimal digits each */
#define BADGES REG(0xD356)
#define TUNE REG(0xD35B)
#define MAP REG(0xD35E)
#define Y REG(0xD361)
#define X REG(0xD362)
#define EVENTS ((u8 *)0xD747)     /* one bit each: what has happened once */
#define RANDOM (*(volatile u16 *)0xDA00) /* may be written while the title stands; 0 means 1 */
#define LAST_REST REG(0xDA02)     /* the map in which all were last healed */

enum { DOWN = 0, UP = 4, LEFT = 8, RIGHT = 12 };
enum { BALL = 4 };                /* the one item */
enum { SPARK = 1, MOTH, WISP, CRAB };
enum { TUNE_FIGHT = 3, TUNE_TITLE };
enum { SOUND_NONE, SOUND_BUMP, SOUND_DOOR, SOUND_TEXT, SOUND_FIGHT, SOUND_HIT, SOUND_WON, SOUND_CAUGHT, SOUND_LEVEL,
       SOUND_HEAL, SOUND_BADGE, SOUND_LOST };

/* screen.c */
extern u8 keys, keys_new;         /* buttons held, and those pressed since the frame before */
void screen_start(void);
void frame(void);                 /* wait for the next picture; then read the buttons, advance sound and chance */
void frames(u8 count);
void row(u8 window, u8 y, const u8 *tiles);          /* twenty tiles; takes a frame */
void text(u8 window, u8 y, const char *letters);     /* up to twenty letters, then blanks */
void cell_row(u8 y, const u8 *cells);                /* ten cells; takes two frames */
void hero(u8 x, u8 y);            /* his sprite, in pixels; y 160 hides it */
void dark(u8 on);                 /* nothing is seen while a picture is drawn */
void panel(u8 open);
void number(char *to, u16 value, u8 digits);
u8 chance(void);                  /* a random byte */

/* sound.c */
void sound_start(void);
void sound_step(void);
void tune(u8 id);
void effect(u8 id);

/* fight.c */
u8 say(const char *letters);      /* a panel of up to four lines, split by |; ends with A. Always 1 */
u16 get16(const u8 *at);
void put16(u8 *at, u16 value);
void earn(u8 hundreds);
void join(u8 species, u8 level, u16 hp);
void heal(void);
void status(void);                /* what one owns, page by page */
u8 fight(u8 species, u8 level, u8 trainer);          /* 1 if it was won */

#endif
