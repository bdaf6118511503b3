/* The game itself: hero, opponents, chargers, coins, doors. Positions are in 1/256 pixel, velocities in 1/256 pixel a
   frame. Everything here is a function of settings and buttons; random numbers come from two streams of the seed. */
#include "bonk.h"

enum {
  PUSH = 0x1C,        /* what the pad adds to the velocity each frame */
  CRUISE = 0x300,     /* above this speed friction is strong */
  DASH = 0x240,       /* what a dash adds */
  DASH_WAIT = 48,
  FAST = 24,          /* 1.5 pixels a frame: from here on a hit counts (in 1/16) */
  WARNING = 30,       /* frames between a charger's first beep and the charger */
  CHARGE = 10,        /* pixels a frame */
  CHARGER_HURTS = 2,
  COIN_WAIT = 120,    /* frames until a coin comes back */
  SAFE = 50           /* frames without further hurt */
};

/* --- random numbers ------------------------------------------------------------------------------------------ */
static u16 world_random, event_random;

u16 random_world(void) {
  world_random ^= world_random << 7;
  world_random ^= world_random >> 9;
  world_random ^= world_random << 8;
  return world_random;
}

static u8 random_event(void) {
  event_random ^= event_random << 7;
  event_random ^= event_random >> 9;
  event_random ^= event_random << 8;
  return (u8)(event_random >> 4);
}

static void seed_all(void) {
  u8 i;
  world_random = set_seed * 0x9E35 ^ 0x5EED; /* odd factors: near seeds give games that are not alike */
  event_random = set_seed * 0x6255 ^ 0xB04C;
  if (!world_random) world_random = 0xACE1;
  if (!event_random) event_random = 0x1DEA;
  for (i = 0; i < 8; ++i) {
    random_world();
    random_event();
  }
}

/* --- small arithmetic ------------------------------------------------------------------------------------------- */
static u16 size(i16 v) { return v < 0 ? (u16)-v : (u16)v; }

/* Length of (a, b) to 7 %: the larger plus 3/8 of the smaller. */
static u16 length(u16 a, u16 b) {
  u16 swap;
  if (a < b) {
    swap = a;
    a = b;
    b = swap;
  }
  return a + (b >> 2) + (b >> 3);
}

static u8 apart(u8 a, u8 b) { return a < b ? b - a : a - b; }

static i16 slowed(i16 v, u8 shift) {
  u16 a = size(v), loss = (a >> shift) + 2;
  a = a > loss ? a - loss : 0;
  return v < 0 ? -(i16)a : (i16)a;
}

/* --- a body among walls ------------------------------------------------------------------------------------------- */
static const u8 row_cell[] = {0, 10, 20, 30, 40, 50, 60, 70};
static u16 hero_x, hero_y;
static i16 hero_vx, hero_vy;
static u16 bx, by;
static i16 bvx, bvy;
static u8 is_hero, bumped, bumped_cell, bumped_kind;
static u16 impact;

static u8 solid(u8 px, u8 py) {
  u8 column = px >> 4, row = py >> 4, cell = row_cell[row] + column, kind = g_cells[cell];
  if (kind && kind != CELL_KEY) {
    if (!bumped || kind >= bumped_kind) {
      bumped_kind = kind;
      bumped_cell = cell;
    }
    return 1;
  }
  return !is_hero && (!column || column == 9 || !row || row == 7);
}

static i16 bounced(i16 v) {
  u16 a = size(v);
  if (is_hero) {
    if (bumped_kind == CELL_BUMPER) {
      a += a >> 2;
      if (a < 0x220) a = 0x220;
      if (a > 0x480) a = 0x480;
    } else a = a < 0x50 ? 0 : a - (a >> 2);
  }
  return v < 0 ? (i16)a : -(i16)a;
}

/* Only one corner of the hero touches: a small push to the other side leads him past it. */
static i16 past_corner(i16 v, u8 first) {
  if (size(v) > 0x80) return v;
  return first ? v + 0x28 : v - 0x28;
}

/* Move a body with a box of 12 x 12 by its velocity, one axis after the other; it bounces off what is solid. */
static void move(void) {
  u8 edge, a, b;
  u16 to;
  bumped = bumped_kind = 0;
  impact = 0;
  if (bvx) {
    to = bx + bvx;
    edge = (u8)(to >> 8) + (bvx > 0 ? 5 : -6);
    a = (u8)(by >> 8) - 6;
    b = a + 11;
    a = solid(edge, a);
    b = solid(edge, b);
    if (a | b) {
      bumped = 1;
      impact = size(bvx);
      if (is_hero && a != b) bvy = past_corner(bvy, a);
      to = (u16)(bvx > 0 ? (edge & 0xF0) - 6 : (edge | 0x0F) + 7) << 8;
      bvx = bounced(bvx);
    }
    bx = to;
  }
  if (bvy) {
    to = by + bvy;
    edge = (u8)(to >> 8) + (bvy > 0 ? 5 : -6);
    a = (u8)(bx >> 8) - 6;
    b = a + 11;
    a = solid(a, edge);
    b = solid(b, edge);
    if (a | b) {
      bumped = 1;
      if (size(bvy) > impact) impact = size(bvy);
      if (is_hero && a != b) bvx = past_corner(bvx, a);
      to = (u16)(bvy > 0 ? (edge & 0xF0) - 6 : (edge | 0x0F) + 7) << 8;
      bvy = bounced(bvy);
    }
    by = to;
  }
}

/* --- score, hurts, heals ------------------------------------------------------------------------------------------ */
static u8 hud_stale, spark_x, spark_y, spark_time, face_left, dash_time;
static u8 sign_wait, dialog_time;

static void score(u8 points) {
  g_score += points;
  hud_stale = 1;
}

static void experience(u8 points) {
  g_xp += points;
  while (g_xp >= ((u16)g_rescued + 1) * 5) {
    ++g_rescued;
    if (g_hp < g_max_hp) {
      ++g_hp;
      effect(SFX_LEVEL);
    }
  }
  hud_stale = 1;
}

static u8 hurt(u8 points) {
  if (g_invincible) return 0;
  g_hp = g_hp > points ? g_hp - points : 0;
  ++g_hits;
  g_invincible = SAFE;
  shake = 12;
  hud_stale = 1;
  noise(NOISE_HURT, 0);
  if (!g_hp) g_game_over = 1;
  return 1;
}

/* --- coins ------------------------------------------------------------------------------------------------------ */
static u8 coins_left[9], coin_wait;
static u16 left_at[9];

/* A new hidden coin on a free cell, some cells away from the hero. */
static void hide_coin(void) {
  u8 tries, cell = (u8)(random_world() % 80), column, row;
  for (tries = 0; tries < 80; ++tries) {
    cell += 27;
    if (cell >= 80) cell -= 80;
    row = 0;
    column = cell;
    while (column > 9) {
      column -= 10;
      ++row;
    }
    if (g_cells[cell] || !column || column == 9 || !row || row == 7) continue;
    if (apart(column << 4, g_x) + apart(row << 4, g_y) < 56) continue;
    g_coin_x = (column << 4) + 8;
    g_coin_y = (row << 4) + 8;
    return;
  }
}

static void coins(void) {
  u8 i, cell, x, bit;
  if (g_dark) {
    if (!g_coin_x) {
      if (!--coin_wait) hide_coin();
      g_hum = 0;
      return;
    }
    x = apart(g_x, g_coin_x);
    i = apart(g_y, g_coin_y);
    if (x < 11 && i < 11) {
      ++g_coins;
      score(2);
      effect(SFX_DING);
      g_coin_x = g_coin_y = 0;
      g_hum = 0;
      coin_wait = 30;
      return;
    }
    i = (u8)(length(x, i) >> 3);
    g_hum = i > 13 ? 2 : 15 - i;
    return;
  }
  for (i = 0, bit = 1; bit; ++i, bit <<= 1) {
    if (!(g_coin_mask & bit)) continue;
    cell = g_coin_cells[i];
    x = 8;
    while (cell > 9) {
      cell -= 10;
      x += 16;
    }
    if (apart(g_y, x) > 11 || apart(g_x, (cell << 4) + 8) > 11) continue;
    g_coin_mask &= ~bit;
    --g_lit_coins;
    ++g_coins;
    score(1);
    effect(SFX_DING);
    draw_cell(g_coin_cells[i], T_FLOOR);
    coin_wait = COIN_WAIT;
  }
  if (coin_wait && !--coin_wait) { /* the first missing coin comes back */
    for (i = 0, bit = 1; bit; ++i, bit <<= 1)
      if (g_coin_cells[i] != 255 && !(g_coin_mask & bit)) {
        g_coin_mask |= bit;
        ++g_lit_coins;
        draw_cell(g_coin_cells[i], T_COIN);
        coin_wait = COIN_WAIT;
        break;
      }
  }
}

/* --- screens ------------------------------------------------------------------------------------------------------ */
static u8 chargers_here;
static u16 charger_wait;

static void charger_pause(void) {
  g_charger_phase = 0;
  charger_wait = ((u16)set_charger_gap << 3) + ((u16)random_event() * set_charger_gap >> 4);
}

static void place(Actor *actor, u8 slot) {
  const u8 *from = world_actors + (g_screen << 3) + (slot << 1);
  u8 cell = from[0], kind = from[1], y = 8, r;
  actor->kind = KIND_NONE;
  actor->timer = 0;
  if (!kind) return;
  if (kind == KIND_BOSS ? g_badges & (g_screen ? 1 : 2) : !set_opponents) return;
  while (cell > 9) {
    cell -= 10;
    y += 16;
  }
  actor->x = ((cell << 4) + 8) << 8;
  actor->y = (u16)y << 8;
  actor->flash = 0;
  actor->kind = kind;
  r = (u8)(random_world() >> 5);
  actor->hp = 1;
  actor->vx = actor->vy = 0;
  if (kind == KIND_BLOB) {
    actor->vx = r & 1 ? 0x90 : -0x90;
    actor->vy = r & 2 ? 0x90 : -0x90;
  } else if (kind == KIND_HUNTER) actor->hp = 2;
  else {
    actor->hp = g_screen ? 5 : 7;
    actor->x = PX(80);
    actor->timer = 60 + (r & 31);
  }
}

/* The hero is in g_screen now: cells, coins, opponents, music, picture. */
static void enter(void) {
  u8 i, bit, count;
  const u8 *cells = world_cells;
  u16 away;
  for (i = g_screen; i; --i) cells += 80;
  for (i = 0; i < 80; ++i) g_cells[i] = cells[i];
  for (i = 0; i < 80; ++i) {
    if (g_cells[i] == CELL_LOCK && g_opened & 1) g_cells[i] = CELL_FLOOR;
    if (g_cells[i] == CELL_GATE && g_opened & 2) g_cells[i] = CELL_FLOOR;
    if (g_cells[i] == CELL_KEY && g_key) g_cells[i] = CELL_FLOOR;
  }
  g_dark = set_darkness == ALL || (set_darkness == MAP && world_dark[g_screen]);
  g_coin_x = g_coin_y = g_hum = 0;
  g_coin_mask = g_lit_coins = 0;
  count = world_coin_count[g_screen];
  for (i = 0; i < 8; ++i) g_coin_cells[i] = world_coins[(g_screen << 3) + i];
  if (!g_dark) {
    if (g_visited >> g_screen & 1) {
      g_coin_mask = coins_left[g_screen];
      away = (g_frame - left_at[g_screen]) >> 7; /* coins that came back meanwhile */
    } else away = 8;
    for (i = 0, bit = 1; i < count; ++i, bit <<= 1) {
      if (!(g_coin_mask & bit) && away) {
        g_coin_mask |= bit;
        --away;
      }
      if (g_coin_mask & bit) ++g_lit_coins;
    }
    coin_wait = g_lit_coins < count ? COIN_WAIT : 0;
  } else coin_wait = 30;
  g_visited |= 1 << g_screen;
  for (i = 0; i < 4; ++i) place(ACTORS + i, i);
  g_boss_hp = ACTORS[0].kind == KIND_BOSS ? ACTORS[0].hp : 0;
  chargers_here = set_chargers == ALL || (set_chargers == MAP && world_chargers[g_screen]);
  charger_pause();
  spark_time = 0;
  effects_step();
  draw_screen();
  music_play(TUNE_SCREEN_0 + g_screen);
  frame();
}

static void leave(i8 step, u8 x, u8 y) {
  coins_left[g_screen] = g_coin_mask;
  left_at[g_screen] = g_frame;
  g_screen += step;
  g_x = x;
  g_y = y;
  hero_x = (u16)x << 8;
  hero_y = (u16)y << 8;
  ++g_doors;
  effect(SFX_DOOR);
  enter();
}

/* --- hero ------------------------------------------------------------------------------------------------------- */
static void push(void) {
  if (keys & KEY_RIGHT) {
    hero_vx += PUSH;
    face_left = 0;
  }
  if (keys & KEY_LEFT) {
    hero_vx -= PUSH;
    face_left = 1;
  }
  if (keys & KEY_DOWN) hero_vy += PUSH;
  if (keys & KEY_UP) hero_vy -= PUSH;
  if (keys & KEY_A && !g_dash_wait) {
    if (!(keys & 15)) { /* without a direction: onwards, or where he looks */
      if (size(hero_vx) < 0x40 && size(hero_vy) < 0x40) hero_vx += face_left ? -DASH : DASH;
      else {
        if (size(hero_vx) >= 0x40) hero_vx += hero_vx < 0 ? -DASH : DASH;
        if (size(hero_vy) >= 0x40) hero_vy += hero_vy < 0 ? -DASH : DASH;
      }
    }
    if (keys & KEY_RIGHT) hero_vx += DASH;
    if (keys & KEY_LEFT) hero_vx -= DASH;
    if (keys & KEY_DOWN) hero_vy += DASH;
    if (keys & KEY_UP) hero_vy -= DASH;
    g_dash_wait = DASH_WAIT;
    dash_time = 12;
    noise(NOISE_DASH, 0);
  }
  hero_vx = slowed(hero_vx, keys & KEY_B ? 3 : size(hero_vx) > CRUISE && !dash_time ? 3 : 5);
  hero_vy = slowed(hero_vy, keys & KEY_B ? 3 : size(hero_vy) > CRUISE && !dash_time ? 3 : 5);
  if (hero_vx > 0x500) hero_vx = 0x500;
  if (hero_vx < -0x500) hero_vx = -0x500;
  if (hero_vy > 0x500) hero_vy = 0x500;
  if (hero_vy < -0x500) hero_vy = -0x500;
}

static void read_sign(void) {
  const char *from = world_signs;
  u8 i;
  for (i = g_screen; i; --i) from += 80;
  for (i = 0; i < 4; ++i, from += 20) panel_text(i, from);
  if (g_charger_phase) charger_pause(); /* who reads is left in peace */
  g_dialog = g_screen + 1;
  ++g_dialogs;
  dialog_time = 0;
  hero_vx = hero_vy = 0;
  effect(SFX_SIGN);
  panel_open();
}

static void open_cells(u8 kind) {
  u8 i;
  for (i = 0; i < 80; ++i)
    if (g_cells[i] == kind) {
      g_cells[i] = CELL_FLOOR;
      draw_cell(i, T_FLOOR);
    }
  effect(SFX_KEY);
}

/* What the hero ran into. */
static void ran_into(void) {
  u8 speed = impact > 0xFFF ? 255 : (u8)(impact >> 4);
  if (bumped_kind == CELL_LOCK && g_key == 1) {
    g_key = 2;
    g_opened |= 1;
    hud_stale = 1;
    open_cells(CELL_LOCK);
  } else if (bumped_kind == CELL_GATE && g_badges & 1) {
    g_opened |= 2;
    open_cells(CELL_GATE);
  } else if (bumped_kind == CELL_SIGN && !sign_wait) {
    read_sign();
    sign_wait = 90;
  }
  if (speed < 6) return; /* leaning on a wall makes no noise */
  ++g_bonks;
  g_bonk_speed = speed;
  if (bumped_kind == CELL_BUMPER) noise(NOISE_BUMPER, speed);
  else noise(NOISE_BONK, speed);
  if (speed > 36) shake = 4;
}

static u8 hero(void) {
  u16 x, y;
  push();
  x = hero_x + hero_vx;
  y = hero_y + hero_vy;
  /* doors: the centre reaches the border of the picture */
  if (x < PX(7)) { leave(-1, 151, g_y); return 1; }
  if (x > PX(152)) { leave(1, 8, g_y); return 1; }
  if (y < PX(7)) { leave(-3, g_x, 119); return 1; }
  if (y > PX(120)) { leave(3, g_x, 8); return 1; }
  bx = hero_x;
  by = hero_y;
  bvx = hero_vx;
  bvy = hero_vy;
  is_hero = 1;
  move();
  hero_x = bx;
  hero_y = by;
  hero_vx = bvx;
  hero_vy = bvy;
  g_x = hero_x >> 8;
  g_y = hero_y >> 8;
  if (bumped) ran_into();
  bumped_cell = row_cell[g_y >> 4] + (g_x >> 4);
  if (g_cells[bumped_cell] == CELL_KEY) {
    g_cells[bumped_cell] = CELL_FLOOR;
    draw_cell(bumped_cell, T_FLOOR);
    g_key = 1;
    score(5);
    effect(SFX_KEY);
  }
  return 0;
}

/* --- opponents ---------------------------------------------------------------------------------------------------- */
static i16 towards(i16 v, u8 here, u8 there, u8 by_how_much, i16 limit) {
  if (there > here) v += by_how_much;
  else if (there < here) v -= by_how_much;
  if (v > limit) v = limit;
  if (v < -limit) v = -limit;
  return v;
}

static void boss_moves(Actor *actor) {
  u8 x = actor->x >> 8, y = actor->y >> 8, king = !g_screen;
  --actor->timer;
  if (actor->timer > 120) { /* wanders towards the hero */
    actor->vx = towards(actor->vx, x, g_x, 6, 0x98);
    actor->vy = towards(actor->vy, y, g_y, 6, 0x98);
    if (actor->timer == 121) noise(NOISE_GROWL, 0);
  } else if (actor->timer > 96) { /* growls, trembling, before the rush */
    actor->vx = actor->timer & 2 ? 0x100 : -0x100;
    actor->vy = 0;
    if (actor->timer == 97) { /* aims */
      i16 dx = (i16)g_x - x, dy = (i16)g_y - y;
      u8 far = (u8)length(size(dx), size(dy));
      i16 pace = king ? 11 : 9;
      u8 unit = (far >> 2) + 1; /* a quarter of the distance: the speed is about 4 * 16 * pace */
      actor->vx = (dx << 4) / (i16)unit * pace;
      actor->vy = (dy << 4) / (i16)unit * pace;
    }
  } else if (actor->timer > 60) { /* rushes */
  } else { /* out of breath */
    actor->vx = slowed(actor->vx, 3);
    actor->vy = slowed(actor->vy, 3);
    if (!actor->timer) actor->timer = (king ? 170 : 200) + ((u8)random_world() & 31);
  }
  actor->x += actor->vx;
  actor->y += actor->vy;
  x = actor->x >> 8;
  y = actor->y >> 8;
  if (x < 32) {
    actor->x = PX(32);
    actor->vx = -actor->vx;
  }
  if (x > 128) {
    actor->x = PX(128);
    actor->vx = -actor->vx;
  }
  if (y < 32) {
    actor->y = PX(32);
    actor->vy = -actor->vy;
  }
  if (y > 96) {
    actor->y = PX(96);
    actor->vy = -actor->vy;
  }
}

static void beaten(Actor *actor) {
  u8 kind = actor->kind;
  spark_x = actor->x >> 8;
  spark_y = actor->y >> 8;
  spark_time = 14;
  actor->kind = KIND_NONE;
  actor->timer = 150;
  ++g_beaten;
  noise(NOISE_BEATEN, 0);
  if (kind != KIND_BOSS) {
    score(kind == KIND_BLOB ? 2 : 3);
    experience(kind == KIND_BLOB ? 1 : 2);
    return;
  }
  actor->timer = 0;
  spark_time = 60;
  shake = 40;
  score(20);
  experience(10);
  g_hp = g_max_hp;
  g_badges |= g_screen ? 1 : 2;
  effect(SFX_BADGE);
  if (!g_screen) g_win = g_game_over = 1;
}

/* Hero and opponent touch: whoever is fast wins. */
static void touch(Actor *actor, i16 dx, i16 dy) {
  i16 approach = (hero_vx >> 4) * dx + (hero_vy >> 4) * dy;
  u8 boss = actor->kind == KIND_BOSS;
  if (g_speed >= FAST && approach > 0) {
    if (actor->flash) return;
    g_bonk_speed = g_speed;
    --actor->hp;
    if (boss) g_boss_hp = actor->hp;
    actor->flash = boss ? 45 : 20;
    shake = 6;
    if (!actor->hp) {
      beaten(actor);
      return;
    }
    noise(NOISE_HIT, g_speed);
    if (boss) {
      if (actor->timer > 60) actor->timer = 60;
    } else {
      actor->vx = hero_vx;
      actor->vy = hero_vy;
    }
    hero_vx = -(hero_vx - (hero_vx >> 2));
    hero_vy = -(hero_vy - (hero_vy >> 2));
    return;
  }
  if (actor->flash) return;
  if (hurt(1)) {
    hero_vx = dx > 0 ? -0x1C0 : 0x1C0;
    hero_vy = dy > 0 ? -0x1C0 : 0x1C0;
    if (size(dx) < 4) hero_vx = 0;
    else if (size(dy) < 4) hero_vy = 0;
  }
}

static void opponents(void) {
  u8 slot, reach, ax, ay;
  i16 dx, dy;
  Actor *actor = ACTORS;
  is_hero = 0;
  g_in_fight = g_boss_hp != 0;
  for (slot = 0; slot < 4; ++slot, ++actor) {
    if (!actor->kind) {
      if (actor->timer && !(g_frame & 3) && !--actor->timer) {
        place(actor, slot);
        if (apart(actor->x >> 8, g_x) + apart(actor->y >> 8, g_y) < 48) { /* not in the hero's face */
          actor->kind = KIND_NONE;
          actor->timer = 15;
        } else actor->flash = 20;
      }
      continue;
    }
    if (actor->flash) --actor->flash;
    if (actor->kind == KIND_BOSS) {
      boss_moves(actor);
      reach = 19;
    } else {
      if (actor->kind == KIND_BLOB && !(g_frame & 31)) { /* turns around now and then */
        u8 r = (u8)(random_world() >> 3) & 7;
        if (r == 0) actor->vx = -actor->vx;
        if (r == 1) actor->vy = -actor->vy;
      }
      if (actor->kind == KIND_HUNTER && !actor->flash) {
        actor->vx = towards(actor->vx, actor->x >> 8, g_x, 5, 0xC0);
        actor->vy = towards(actor->vy, actor->y >> 8, g_y, 5, 0xC0);
      }
      bx = actor->x;
      by = actor->y;
      bvx = actor->vx;
      bvy = actor->vy;
      move();
      actor->x = bx;
      actor->y = by;
      actor->vx = bvx;
      actor->vy = bvy;
      reach = 12;
    }
    dx = (i16)(actor->x >> 8) - g_x;
    dy = (i16)(actor->y >> 8) - g_y;
    ax = (u8)size(dx);
    ay = (u8)size(dy);
    if (ax < 40 && ay < 40) g_in_fight = 1;
    if (ax < reach && ay < reach) touch(actor, dx, dy);
  }
}

/* --- chargers ------------------------------------------------------------------------------------------------------ */
static void chargers(void) {
  i16 x;
  if (!chargers_here) return;
  if (g_charger_phase == 0) {
    if (--charger_wait) return;
    /* half of them come where the hero is, half where he will be when nothing changes his way */
    x = g_y;
    if (random_event() & 1) x += (hero_vy * 24) >> 8;
    g_charger_row = x < 16 ? 1 : x > 111 ? 6 : (u8)x >> 4;
    g_charger_side = random_event() & 1;
    g_charger_phase = 1;
    g_charger_timer = WARNING;
    ++g_announced;
    return;
  }
  if (g_charger_phase == 1) {
    if (--g_charger_timer) return;
    g_charger_phase = 2;
    g_charger_x = g_charger_side ? 166 : -6;
  } else {
    g_charger_x += g_charger_side ? -CHARGE : CHARGE;
    if (g_charger_x < -7 || g_charger_x > 167) {
      charger_pause();
      return;
    }
  }
  x = g_charger_x - g_x;
  if (size(x) < 14 && apart(g_y, (g_charger_row << 4) + 8) < 13 && hurt(CHARGER_HURTS)) {
    ++g_charger_hits;
    hero_vx = g_charger_side ? -0x300 : 0x300;
  }
}

static void decoys(void) {
  if (!set_decoys || g_frame & 15) return;
  if (random_event() >= set_decoys) return;
  ++g_decoys;
  effect(SFX_DING);
}

/* --- picture of a frame ------------------------------------------------------------------------------------------- */
static void sprites(void) {
  u8 slot, x, y, beat = (u8)(g_frame >> 3) & 1;
  Actor *actor = ACTORS;
  sprites_clear();
  if (g_charger_phase == 2) sprite((u8)g_charger_x, (g_charger_row << 4) + 8, T_CHARGER, g_charger_side ? 0x20 : 0);
  if (!(g_invincible & 4)) sprite(g_x, g_y, dash_time ? T_DASH : T_HERO, face_left ? 0x20 : 0);
  if (spark_time) {
    --spark_time;
    if (!(spark_time & 2)) sprite(spark_x, spark_y, T_SPARK, 0);
  }
  for (slot = 0; slot < 4; ++slot, ++actor) {
    if (!actor->kind) continue;
    x = actor->x >> 8;
    y = actor->y >> 8;
    if (actor->kind == KIND_BOSS) boss_sprite(x, y, g_screen ? T_BRUTE : T_KING, actor->flash & 4 ? 0x10 : 0);
    else sprite(x, y, (actor->kind == KIND_BLOB ? T_BLOBA : T_HUNTERA) + (beat << 2), actor->flash & 4 ? 0x10 : 0);
  }
}

static void publish(void) {
  g_vx = (i8)(hero_vx >> 4);
  g_vy = (i8)(hero_vy >> 4);
  g_speed = (u8)(length(size(hero_vx), size(hero_vy)) >> 4);
}

static void dialog(void) {
  if (dialog_time < 255) ++dialog_time;
  if ((keys_new & KEY_A && dialog_time > 8) || (keys & KEY_A && dialog_time > 60)) {
    g_dialog = 0;
    panel_close();
    g_dash_wait = 16;
  }
}

static void pause(void) {
  u8 hum = g_hum, charger = g_charger_phase;
  g_phase = PHASE_PAUSE;
  g_hum = g_charger_phase = 0; /* lasting sounds wait too */
  do {
    effects_step();
    frame();
  } while (!(keys_new & KEY_START));
  g_hum = hum;
  g_charger_phase = charger;
  g_phase = PHASE_PLAY;
}

/* --- an episode ----------------------------------------------------------------------------------------------------- */
void play(void) {
  static const char *const lost = "     GAME  OVER     ", *const won = "  BONK WINS IT ALL  ";
  char line[20];
  u8 i;
  seed_all();
  sound_silence();
  g_max_hp = g_hp = set_hp;
  g_screen = set_start;
  if (set_start == 6) g_opened = 1; /* who begins behind a door finds it open */
  if (!set_start) g_opened = 2;
  i = (u8)(random_world() >> 4);
  g_x = 72 + (i & 15); /* somewhere in the middle */
  g_y = 56 + (i >> 4);
  hero_x = PX(g_x);
  hero_y = PX(g_y);
  sprites_clear();
  panel_close();
  draw_hud();
  enter();
  publish();
  sprites();
  g_phase = PHASE_PLAY;
  frame();
  while (!g_game_over) {
    ++g_frame;
    if (keys_new & KEY_START) pause();
    if (shake) --shake;
    if (g_invincible) --g_invincible;
    if (g_dash_wait) --g_dash_wait;
    if (dash_time) --dash_time;
    if (sign_wait && !g_dialog) --sign_wait;
    if (g_dialog) dialog();
    else if (!hero()) {
      publish();
      coins();
      opponents();
      chargers();
      decoys();
    }
    publish();
    sprites();
    if (hud_stale) {
      hud_stale = 0;
      draw_hud();
    }
    effects_step();
    frame();
  }
  /* the end screen: nothing moves any more */
  g_phase = PHASE_OVER;
  g_charger_phase = 0;
  g_hum = 0;
  shake = 0;
  effect(g_win ? SFX_WIN : SFX_OVER);
  music_play(g_win ? TUNE_WON : TUNE_LOST);
  panel_text(0, g_win ? won : lost);
  for (i = 0; i < 20; ++i) line[i] = ' ';
  for (i = 0; i < 5; ++i) line[4 + i] = "SCORE"[i];
  number(line + 11, g_score, 5);
  panel_text(1, line);
  for (i = 0; i < 20; ++i) line[i] = ' ';
  panel_text(2, line);
  panel_text(3, "    PRESS  START    ");
  panel_open();
  do {
    sprites();
    effects_step();
    frame();
  } while (!(keys_new & KEY_START));
}
