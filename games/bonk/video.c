/* Pictures. Work of a frame fills the sprite list (C200) and the queue; the vertical blank copies them. The map has two
   halves of 16 rows in the background, the shown one and the hidden one, so that the screen never has to go dark. The
   window at the bottom is the HUD; a panel with text slides up under it. */
#include "bonk.h"

#define OAM ((u8 *)0xC200)
#define JOBS 16

typedef struct { /* 8 bytes, so that finding one in the list is a shift */
  u16 to;
  const u8 *from;
  u8 pairs, cost;
  u8 spare[2];
} Job;

u8 shake, panel, keys, keys_new;
static volatile u8 blank, ready;
static volatile u8 job_first, job_last;
static Job jobs[JOBS];
static u8 oam_at, half, scroll_y, window_y;
static u8 bgp, obp0;
static u8 row_tiles[40], hud[40];
static char text_rows[100];

Job *job_now;

/* The copy that job_now asks for: 16 cycles for two bytes */
static void copy(void) __naked {
  __asm
    ld hl, #_job_now
    ld a, (hl+)
    ld h, (hl)
    ld l, a
    ld a, (hl+)
    ld c, a
    ld a, (hl+)
    ld b, a
    ld a, (hl+)
    ld e, a
    ld a, (hl+)
    ld d, a
    ld a, (hl)
    ld h, b
    ld l, c
    ld b, a
  00001$:
    ld a, (de)
    inc de
    ld (hl+), a
    ld a, (de)
    inc de
    ld (hl+), a
    dec b
    jr nz, 00001$
    ret
  __endasm;
}

/* The interrupt. Music first: its registers change at the same moment of every frame. */
void vblank(void) {
  u8 budget = 52; /* two rows of tiles: what fits into the blank beside the rest */
  music_write();
  if (ready) {
    __asm__("call 0xFF80");
    while (job_first != job_last) {
      job_now = &jobs[job_first];
      if (job_now->cost > budget) break;
      budget -= job_now->cost;
      copy();
      job_first = (job_first + 1) & (JOBS - 1);
    }
    SCY = scroll_y;
    SCX = shake & 2 ? 2 : shake & 1 ? 254 : 0;
    WY = window_y;
    BGP = bgp;
    OBP0 = obp0;
    ready = 0;
  } else if (g_phase) ++g_late;
  music_step();
  blank = 1;
}

/* Sleep until the interrupt has run. HALT with interrupts off wakes when one is due, so none can slip in between the
   look at `blank` and the sleep; EI then lets it run. */
static void wait(void) __naked {
  __asm
    di
  00001$:
    ld a, (_blank)
    or a
    jr nz, 00002$
    halt
    nop
    ei
    nop
    nop
    di
    jr 00001$
  00002$:
    ei
    ret
  __endasm;
}

#include "keys.h"

void frame(void) {
  g_load = LY;
  blank = 0;
  ready = 1;
  wait();
  while (LY > 143); /* the blank ends: the new picture begins, and with it its effects, its input and its work */
  effects_write();
  read_keys();
}

void queue(u16 to, const u8 *from, u8 count) {
  Job *job = &jobs[job_last];
  u8 next = (job_last + 1) & (JOBS - 1);
  while (next == job_first) frame();
  job->to = to;
  job->from = from;
  job->pairs = count >> 1;
  job->cost = count + 6;
  job_last = next;
}

/* --- sprites --------------------------------------------------------------------------------------------------- */
void sprites_clear(void) {
  u8 *at = OAM;
  do {
    *at = 0;
    at += 4;
  } while ((u8)at != 160);
  oam_at = 0;
}

static void object(u8 x, u8 y, u8 tile, u8 attributes) {
  u8 *at = OAM + oam_at;
  *at++ = y;
  *at++ = x;
  *at++ = tile;
  *at = attributes;
  oam_at += 4;
}

/* A 16 x 16 sprite around (x, y); nothing is drawn over an open panel. */
void sprite(u8 x, u8 y, u8 tile, u8 attributes) {
  if (panel && y > 80) return;
  if (oam_at > 152) return;
  y += 8;
  if (attributes & 0x20) {
    object(x, y, tile + 2, attributes);
    object(x + 8, y, tile, attributes);
  } else {
    object(x, y, tile, attributes);
    object(x + 8, y, tile + 2, attributes);
  }
}

/* 32 x 32: the left half, and the same mirrored. */
void boss_sprite(u8 x, u8 y, u8 tile, u8 attributes) {
  u8 band;
  if (panel && y > 72) return;
  for (band = 0; band < 2; ++band) {
    object(x - 8, y, tile, attributes);
    object(x, y, tile + 2, attributes);
    object(x + 8, y, tile + 2, attributes | 0x20);
    object(x + 16, y, tile, attributes | 0x20);
    y += 16;
    tile += 4;
  }
}

/* --- map --------------------------------------------------------------------------------------------------------- */
static u8 tile_of(u8 cell) { return T_FLOOR + (g_cells[cell] << 2); }

static const u8 cell_tiles[] = {
  T_FLOOR, T_FLOOR + 1, T_FLOOR + 2, T_FLOOR + 3, T_COIN, T_COIN + 1, T_COIN + 2, T_COIN + 3,
};

void draw_cell(u8 cell, u8 tile) {
  const u8 *from = cell_tiles + (tile == T_COIN ? 4 : 0);
  u8 row = 0;
  u16 to;
  while (cell > 9) {
    cell -= 10;
    ++row;
  }
  to = 0x9800 + ((u16)half << 9) + ((u16)row << 6) + (cell << 1);
  queue(to, from, 2);
  queue(to + 32, from + 2, 2);
}

void draw_screen(void) {
  u8 row, column, cell = 0, i;
  u8 tiles[10];
  u16 to;
  while (job_first != job_last) frame();
  half ^= 1;
  to = 0x9800 + ((u16)half << 9);
  for (row = 0; row < 8; ++row) {
    for (column = 0; column < 10; ++column) tiles[column] = tile_of(cell + column);
    if (!g_dark)
      for (i = 0; i < 8; ++i) {
        u8 spot = g_coin_cells[i] - cell;
        if (spot < 10 && g_coin_mask & (u8)(1 << i)) tiles[spot] = T_COIN;
      }
    for (column = 0; column < 10; ++column) {
      u8 tile = tiles[column], *at = row_tiles + (column << 1);
      at[0] = tile;
      at[1] = tile + 1;
      at[20] = tile + 2;
      at[21] = tile + 3;
    }
    cell += 10;
    queue(to, row_tiles, 20);
    queue(to + 32, row_tiles + 20, 20);
    to += 64;
    frame();
  }
  scroll_y = half ? 128 : 0;
  bgp = g_dark ? 0x6F : 0xE4;
  obp0 = g_dark ? 0x1C : 0xE0;
}

/* --- HUD and panel --------------------------------------------------------------------------------------------- */
void number(char *to, u16 value, u8 digits) {
  static const u16 tens[] = {1, 10, 100, 1000, 10000};
  while (digits--) {
    u8 digit = '0';
    u16 ten = tens[digits];
    while (value >= ten) {
      value -= ten;
      ++digit;
    }
    *to++ = digit;
  }
}

static void text(u8 *to, const char *from, u8 count) {
  while (count--) *to++ = *from++ - 32;
}

void draw_hud(void) {
  char line[6];
  u8 i;
  for (i = 0; i < 9; ++i) hud[1 + i] = i < g_hp ? T_HEART : i < g_max_hp ? T_HOLLOW : 0;
  hud[15] = g_key == 1 ? T_KEYSMALL : 0;
  hud[17] = g_badges & 1 ? T_BADGE : T_NOBADGE;
  hud[18] = g_badges & 2 ? T_BADGE : T_NOBADGE;
  text(hud + 21, "SCORE", 5);
  number(line, g_score, 5);
  text(hud + 27, line, 5);
  text(hud + 34, "XP", 2);
  number(line, g_xp, 3);
  text(hud + 36, line, 3);
  queue(0x9C00, hud, 20);
  queue(0x9C20, hud + 20, 20);
}

/* Row 0 to 3 of the panel: 20 characters. */
void panel_text(u8 row, const char *from) {
  u8 *at = (u8 *)text_rows + row * 20;
  text(at, from, 20);
  queue(0x9C60 + ((u16)row << 5), at, 20);
}

void panel_open(void) {
  panel = 1;
  window_y = 88;
}

void panel_close(void) {
  panel = 0;
  window_y = 128;
}

/* --- start ----------------------------------------------------------------------------------------------------- */
static const char *const letters[] = {
  "###. .##. #..# #..# ",
  "#..# #..# ##.# #.#. ",
  "###. #..# #.## ##.. ",
  "#..# #..# #..# #.#. ",
  "###. .##. #..# #..# ",
};

/* The title, drawn while the screen is off. */
void title_picture(void) {
  u8 x, y;
  u8 *at = (u8 *)0x9800;
  for (y = 0; y < 5; ++y)
    for (x = 0; x < 19; ++x)
      if (letters[y][x] == '#') at[(2 + y) * 32 + x] = T_BLOCK;
  text(at + 32 * 15 + 1, "A: DASH   B: BRAKE", 18);
  for (x = 0; x < 20; ++x) {
    at[32 * 10 + x] = T_WALL + (x & 1);
    at[32 * 11 + x] = T_WALL + 2 + (x & 1);
  }
}

void title_blink(u8 on) {
  text(row_tiles, on ? "PRESS START " : "            ", 12);
  queue(0x9800 + 32 * 13 + 4, row_tiles, 12);
}

/* Screen off, everything copied, screen on. */
void video_start(void) {
  u16 i;
  u8 *at = (u8 *)0x8000;
  if (LCDC & 0x80) {
    while (LY != 145);
    LCDC = 0;
  }
  for (i = 0; i < sizeof(tile_data); ++i) at[i] = tile_data[i];
  at = (u8 *)0x9800;
  for (i = 0; i < 0x800; ++i) at[i] = 0;
  for (i = 0; i < 32; ++i) { /* walls beside the map, for shakes; a line above the panel */
    u8 *edge = (u8 *)0x9800 + (i << 5);
    edge[20] = i & 1 ? T_WALL + 2 : T_WALL;
    edge[31] = i & 1 ? T_WALL + 3 : T_WALL + 1;
    if (i < 20) ((u8 *)0x9C40)[i] = T_LINE;
  }
  at = (u8 *)0xFE00;
  for (i = 0; i < 160; ++i) at[i] = 0;
  title_picture();
  half = 0;
  window_y = 144;
  scroll_y = 0;
  bgp = BGP = 0xE4;
  obp0 = OBP0 = 0xE0;
  OBP1 = 0x1C;
  WX = 7;
  WY = 144;
  SCX = SCY = 0;
  LCDC = 0xF7;
}
