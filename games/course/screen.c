/* Pictures, buttons and chance. In each vertical blank at most one row of twenty tiles is written. */
#include "course.h"

#define OAM ((u8 *)0xC200)
#define BACKGROUND 0x9800
#define WINDOW 0x9C00

u8 keys, keys_new;
static volatile u8 blank;
static u8 waiting, palette, window_y;
static u8 *row_to;
static u8 row_tiles[20];

void vblank(void) {
  __asm__("call 0xFF80"); /* sprites */
  if (waiting) {
    const u8 *from = row_tiles;
    u8 *to = row_to;
    u8 left = 20;
    do *to++ = *from++; while (--left);
    waiting = 0;
  }
  BGP = OBP0 = palette;
  WY = window_y;
  blank = 1;
}

#include "keys.h"

u8 chance(void) {
  u16 r = RANDOM;
  if (!r) r = 1;
  r ^= r << 7;
  r ^= r >> 9;
  r ^= r << 8;
  RANDOM = r;
  return (u8)r;
}

void frame(void) {
  blank = 0;
  while (!blank);
  read_keys();
  chance();
  sound_step();
}

void frames(u8 count) {
  while (count--) frame();
}

void screen_start(void) {
  const u8 *from = tile_data;
  u8 *to = (u8 *)0x8000;
  u16 i;
  while (LY != 145);
  LCDC = 0;
  for (i = 0; i < TILE_BYTES; ++i) *to++ = *from++;
  to = (u8 *)BACKGROUND;
  for (i = 0; i < 0x800; ++i) *to++ = 0;
  SCX = SCY = 0;
  WX = 7;
  window_y = 144;
  palette = 0xE4;
  LCDC = 0xF7; /* tiles at 8000, background at 9800, window at 9C00, tall sprites */
  IF = 0;
  IE = 1;
  __asm__("ei");
}

void row(u8 window, u8 y, const u8 *tiles) {
  u8 i;
  for (i = 0; i < 20; ++i) row_tiles[i] = tiles[i];
  row_to = (u8 *)((window ? WINDOW : BACKGROUND) + ((u16)y << 5));
  waiting = 1;
  frame();
}

void text(u8 window, u8 y, const char *letters) {
  u8 tiles[20], i;
  for (i = 0; i < 20; ++i) {
    tiles[i] = 0;
    if (*letters) tiles[i] = *letters++ - 32;
  }
  row(window, y, tiles);
}

void cell_row(u8 y, const u8 *cells) {
  u8 tiles[20], half, i, tile;
  for (half = 0; half < 4; half += 2) {
    for (i = 0; i < 10; ++i) {
      tile = cells[i] ? T_FLOOR + (u8)((cells[i] - 1) << 2) + half : 0;
      tiles[i << 1] = tile;
      tiles[(i << 1) + 1] = tile ? tile + 1 : 0;
    }
    row(0, (y << 1) + (half >> 1), tiles);
  }
}

void hero(u8 x, u8 y) {
  u8 tile = FACING == UP ? T_UP : FACING == DOWN ? T_DOWN : T_SIDE, flip = FACING == LEFT, i;
  for (i = 0; i < 2; ++i) {
    u8 *part = OAM + (i << 2);
    part[0] = y + 16;
    part[1] = x + 8 + (i << 3);
    part[2] = tile + ((i ^ flip) << 1);
    part[3] = flip << 5;
  }
}

void dark(u8 on) {
  palette = on ? 0 : 0xE4;
}

void panel(u8 open) {
  window_y = open ? 96 : 144;
}

void number(char *to, u16 value, u8 digits) {
  while (digits--) {
    to[digits] = '0' + value % 10;
    value /= 10;
  }
}
