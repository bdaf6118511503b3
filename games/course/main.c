/* The title, and the course: walking, doors, grass, and who stands about. */
#include "course.h"

static u8 here;                   /* index of the map */
static const u8 *cells;           /* its 90 */

static void draw_map(void) {
  u8 y;
  dark(1);
  hero(0, 160);
  for (y = 0; y < 9; ++y) cell_row(y, cells + 10 * y);
  hero(X << 4, Y << 4);
  dark(0);
  tune(places[here].tune);
}

static void enter(u8 map, u8 x, u8 y) {
  MAP = map;
  X = x;
  Y = y;
  for (here = 0; places[here].id != map; ++here);
  cells = map_cells + 90 * (u16)here;
  draw_map();
}

/* The hero would stand on a panel in the lowest three rows. */
static void say_here(u8 id) {
  if (Y > 5) hero(0, 160);
  say(texts[id]);
  hero(X << 4, Y << 4);
}

static void fought(u8 won) {
  if (!won && RESULT == 1) {
    heal();
    MONEY[1] = 0;
    FACING = DOWN;
    enter(LAST_REST, 4, 3);
  } else draw_map();
}

/* An event is new once. */
static u8 first_time(u8 event) {
  u8 *at = EVENTS + (event >> 3), bit = 1 << (event & 7), before = *at & bit;
  *at |= bit;
  return !before;
}

static void gym(const Talk *t) {
  if (BADGES >> t->a & 1) return;
  if (fight(t->b, t->c, 1)) {
    fought(1);
    BADGES |= 1 << t->a;
    earn(10);
    first_time(t->event);
    effect(SOUND_BADGE);
    say("YOU HAVE WON|A BADGE!");
  } else fought(0);
}

static void act(const Talk *t) {
  say_here(t->text);
  switch (t->act) {
    case ACT_GIFT:
      if (!first_time(t->event)) break;
      join(t->a, t->b, 0);
      effect(SOUND_CAUGHT);
      break;
    case ACT_BALLS:
      if (!first_time(t->event)) break;
      BAG_COUNT = 1;
      BAG[0] = BALL;
      BAG[1] += t->a;
      effect(SOUND_CAUGHT);
      break;
    case ACT_HEAL:
      heal();
      LAST_REST = MAP;
      effect(SOUND_HEAL);
      break;
    case ACT_GYM:
      if (PARTY_COUNT) gym(t);
  }
}

static void ahead(u8 *x, u8 *y) {
  *x = X + (FACING == RIGHT) - (FACING == LEFT);
  *y = Y + (FACING == DOWN) - (FACING == UP);
}

static void press_a(void) {
  u8 x, y, i;
  ahead(&x, &y);
  for (i = 0; i < TALKS; ++i)
    if (talks[i].map == MAP && talks[i].x == x && talks[i].y == y) {
      act(talks + i);
      return;
    }
}

static void through(const Door *d) {
  u8 shut = d->need == NEED_MEMBER && !PARTY_COUNT || d->need == NEED_BADGE && !BADGES;
  if (shut) {
    say_here(d->text);
    return;
  }
  effect(SOUND_DOOR);
  enter(d->to, d->to_x, d->to_y);
}

static const Door *door_at(u8 x, u8 y) {
  u8 i;
  for (i = 0; i < DOORS; ++i)
    if (doors[i].map == MAP && doors[i].x == x && doors[i].y == y) return doors + i;
  return 0;
}

static void arrived(void) {
  const Place *p = places + here;
  if (cells[10 * Y + X] == CELL_GRASS && p->level && PARTY_COUNT && chance() < 32) {
    u8 won = fight(chance() & 1 ? p->wild_a : p->wild_b, p->level, 0);
    fought(won);
  }
}

/* One cell in sixteen frames; a door is gone through, anything solid is bumped into. */
static void walk(u8 facing) {
  u8 x, y, i, cell, from_x = X << 4, from_y = Y << 4;
  FACING = facing;
  ahead(&x, &y);
  cell = cells[10 * y + x];
  if (cell != CELL_FLOOR && cell != CELL_GRASS && cell != CELL_DOOR) {
    effect(SOUND_BUMP);
    hero(from_x, from_y);
    frames(8);
    return;
  }
  if (cell == CELL_DOOR) {
    hero(from_x, from_y);
    through(door_at(x, y));
    return;
  }
  for (i = 1; i < 16; ++i) {
    hero(from_x + (facing == RIGHT ? i : 0) - (facing == LEFT ? i : 0),
         from_y + (facing == DOWN ? i : 0) - (facing == UP ? i : 0));
    frame();
  }
  X = x;
  Y = y;
  hero(X << 4, Y << 4);
  frame();
  arrived();
}

static void title(void) {
  tune(TUNE_TITLE);
  text(0, 6, "     A  COURSE");
  text(0, 10, "    PRESS  START");
  while (!(keys_new & KEY_START)) frame();
}

static void new_game(void) {
  MONEY[1] = 0x30;
  LAST_REST = 37;
  enter(38, 3, 3);
  say("GOOD MORNING!|TODAY YOU GO OUT|FOR TWO BADGES.");
}

void main(void) {
  IE = 0;
  RANDOM = 1;
  sound_start();
  screen_start();
  title();
  new_game();
  for (;;) {
    frame();
    if (keys & KEY_DOWN) walk(DOWN);
    else if (keys & KEY_UP) walk(UP);
    else if (keys & KEY_LEFT) walk(LEFT);
    else if (keys & KEY_RIGHT) walk(RIGHT);
    else if (keys_new & KEY_A) press_a();
    else if (keys_new & KEY_START) {
      if (Y > 5) hero(0, 160);
      status();
      hero(X << 4, Y << 4);
    }
  }
}
