/* Panels of text, the party, and fights. */
#include "course.h"

static const char *const kinds[5] = {"", "SPARK", "MOTH ", "WISP ", "CRAB "};
static const u8 pictures[5] = {0, T_SPARK, T_MOTH, T_WISP, T_CRAB};
static char line[84];
static u8 foe, mine; /* species of the opponent, and which member fights */

u16 get16(const u8 *at) {
  return (u16)at[0] << 8 | at[1];
}

void put16(u8 *at, u16 value) {
  at[0] = value >> 8;
  at[1] = (u8)value;
}

/* --- panels --- */
static const char *panel_line(u8 y, const char *letters) {
  char part[20];
  u8 i = 0;
  part[i++] = ' ';
  while (*letters && *letters != '|') part[i++] = *letters++;
  part[i] = 0;
  text(1, y, part);
  return *letters ? letters + 1 : letters;
}

static void panel_lines(const char *letters) {
  u8 edge[20], i;
  for (i = 0; i < 20; ++i) edge[i] = T_LINE;
  row(1, 0, edge);
  for (i = 1; i < 6; ++i) letters = panel_line(i, letters);
}

static void wait_for(u8 button) {
  do frame(); while (!(keys_new & button));
}

u8 say(const char *letters) {
  DIALOG = 1;
  panel_lines(letters);
  panel(1);
  wait_for(KEY_A);
  effect(SOUND_TEXT);
  panel(0);
  DIALOG = 0;
  frame();
  return 1;
}

static char *put(char *to, const char *from) {
  while (*from) *to++ = *from++;
  *to = 0;
  return to;
}

static char *put_number(char *to, u16 value, u8 digits) {
  number(to, value, digits);
  to[digits] = 0;
  return to + digits;
}

static char *put_hp(char *to, const u8 *hp, const u8 *most, u8 level) {
  to = put_number(put(to, " L"), level, 2);
  to = put_number(put(to, " HP "), get16(hp), 3);
  return put_number(put(to, "/"), get16(most), 3);
}

static u8 bits(const u8 *from, u16 count) {
  u8 found = 0, b;
  while (count--) for (b = *from++; b; b >>= 1) found += b & 1;
  return found;
}

void status(void) {
  char *to;
  u8 i;
  to = put_number(put(line, "BADGES "), bits((u8 *)&BADGES, 1), 2);
  to = put_number(put(to, " BALLS "), BAG_COUNT ? BAG[1] : 0, 2);
  to = put_number(put(to, "|OWNED "), bits(OWNED, 19), 3);
  to = put_number(put(to, " SEEN "), bits(SEEN, 19), 3);
  to = put(to, "|MONEY ");
  for (i = 0; i < 3; ++i) to = put_number(to, (MONEY[i] >> 4) * 10 + (MONEY[i] & 15), 2);
  put_number(put(to, "|EVENTS "), bits(EVENTS, 320), 3);
  say(line);
  for (i = 0; i < PARTY_COUNT; ++i) {
    u8 *m = MEMBER(i);
    to = put_hp(put(put(line, kinds[SPECIES[i]]), "|"), m + AT_HP, m + AT_MAX_HP, m[AT_LEVEL]);
    put_number(put(to, "|XP "), get16(m + AT_XP + 1), 5);
    say(line);
  }
}

/* --- the party --- */
static void known(u8 *list, u8 species) {
  list[0] |= 1 << (species - 1);
}

static u16 cube(u8 level) {
  return (u16)level * level * level;
}

static u16 most_hp(u8 level) {
  return 10 + 2 * level;
}

void join(u8 species, u8 level, u16 hp) {
  u8 *m = MEMBER(PARTY_COUNT);
  SPECIES[PARTY_COUNT] = species;
  m[0] = species;
  put16(m + AT_HP, hp ? hp : most_hp(level));
  m[AT_XP] = 0;
  put16(m + AT_XP + 1, cube(level));
  m[AT_GENES] = chance();
  m[AT_GENES + 1] = chance();
  m[AT_LEVEL] = level;
  put16(m + AT_MAX_HP, most_hp(level));
  known(SEEN, species);
  known(OWNED, species);
  ++PARTY_COUNT;
}

void heal(void) {
  u8 i;
  for (i = 0; i < PARTY_COUNT; ++i) put16(MEMBER(i) + AT_HP, get16(MEMBER(i) + AT_MAX_HP));
}

/* Some hundreds of money more, in decimal digits. */
void earn(u8 hundreds) {
  while (hundreds--) {
    u8 pair = MONEY[1] + 1;
    if ((pair & 15) == 10) pair += 6;
    if (pair == 0xA0) {
      pair = 0;
      ++MONEY[0]; /* nobody wins ten times here */
    }
    MONEY[1] = pair;
  }
}

static void experience(u16 xp) {
  u8 *m = MEMBER(mine);
  put16(m + AT_XP + 1, get16(m + AT_XP + 1) + xp);
  put_number(put(put(line, kinds[foe]), " IS BEATEN.|XP +"), xp, 3);
  say(line);
  while (get16(m + AT_XP + 1) >= cube(m[AT_LEVEL] + 1)) {
    ++m[AT_LEVEL];
    put16(m + AT_HP, get16(m + AT_HP) + most_hp(m[AT_LEVEL]) - get16(m + AT_MAX_HP));
    put16(m + AT_MAX_HP, most_hp(m[AT_LEVEL]));
    effect(SOUND_LEVEL);
    put_number(put(put(line, kinds[SPECIES[mine]]), " IS NOW|LEVEL "), m[AT_LEVEL], 2);
    say(line);
  }
}

/* --- fights --- */
static u8 next_alive(void) {
  for (mine = 0; mine < PARTY_COUNT; ++mine)
    if (get16(MEMBER(mine) + AT_HP)) return 1;
  return 0;
}

static void draw_name(u8 y, u8 species, const u8 *hp, const u8 *most, u8 level) {
  char shown[21];
  put_hp(put(shown, kinds[species]), hp, most, level);
  text(0, y, shown);
}

static void draw_creature(u8 y, u8 x, u8 species) {
  u8 tiles[20], half, i;
  for (half = 0; half < 4; half += 2) {
    for (i = 0; i < 20; ++i) tiles[i] = 0;
    tiles[x] = pictures[species] + half;
    tiles[x + 1] = pictures[species] + half + 1;
    row(0, y + (half >> 1), tiles);
  }
}

static void draw_names(void) {
  u8 *m = MEMBER(mine);
  draw_name(1, foe, FOE_HP, FOE_MAX_HP, FOE_LEVEL);
  draw_name(10, SPECIES[mine], m + AT_HP, m + AT_MAX_HP, m[AT_LEVEL]);
}

static void draw_fight(void) {
  u8 y;
  dark(1);
  hero(0, 160);
  for (y = 0; y < 18; ++y) text(0, y, "");
  draw_creature(3, 15, foe);
  draw_creature(7, 3, SPECIES[mine]);
  draw_names();
  dark(0);
}

/* 0 hit, 1 ball, 2 run */
static u8 menu(void) {
  u8 at = 0, balls = BAG_COUNT ? BAG[1] : 0;
  do {
    char *to = put(put(line, at ? "  " : "+ "), "HIT|");
    to = put_number(put(put(to, at == 1 ? "+ " : "  "), "BALL "), balls, 2);
    put(put(to, at == 2 ? "|+ " : "|  "), "RUN");
    panel_lines(line);
    panel(1);
    wait_for(KEY_A | KEY_UP | KEY_DOWN);
    if (keys_new & KEY_DOWN && at < 2) ++at;
    else if (keys_new & KEY_UP && at) --at;
  } while (!(keys_new & KEY_A));
  panel(0);
  return at;
}

/* Damage to the number of two bytes at hp */
static void hurt(u8 *hp, u16 damage) {
  u16 left = get16(hp);
  effect(SOUND_HIT);
  put16(hp, damage < left ? left - damage : 0);
}

/* The opponent's turn: 1 if it is gone */
static u8 foe_turn(void) {
  u8 *m = MEMBER(mine);
  if (FIGHT == 1 && foe == WISP && !(chance() & 3)) {
    say("THE WISP IS GONE!");
    return 1;
  }
  frames(10);
  hurt(m + AT_HP, 1 + (FOE_LEVEL >> 1) + (chance() & 1));
  draw_names();
  put(put(line, kinds[foe]), " HITS BACK.");
  if (!get16(m + AT_HP)) put(put(put(line, kinds[SPECIES[mine]]), " CAN'T GO ON."), "");
  say(line);
  return 0;
}

static u8 throw_ball(void) {
  if (FIGHT == 2) return !say("NOT A FRIEND'S!");
  if (!BAG_COUNT) return !say("NO BALL IS LEFT.");
  if (!--BAG[1]) BAG_COUNT = 0;
  if (PARTY_COUNT < 6 && (chance() & 31) >= get16(FOE_HP)) {
    effect(SOUND_CAUGHT);
    join(foe, FOE_LEVEL, get16(FOE_HP));
    put(put(line, kinds[foe]), " IS YOURS NOW!");
    return say(line);
  }
  return !say("IT BROKE FREE.");
}

static u8 run(void) {
  if (FIGHT == 2) return !say("NOBODY RUNS FROM|HERE.");
  if (chance() & 3) return say("GOT AWAY.");
  return !say("NO WAY OUT!");
}

static void end(u8 result) {
  RESULT = result;
  FIGHT = 0;
}

static void begin(u8 species, u8 level, u8 trainer) {
  foe = species;
  RESULT = 0;
  FOE_LEVEL = level;
  put16(FOE_HP, most_hp(level));
  put16(FOE_MAX_HP, most_hp(level));
  known(SEEN, species);
  next_alive();
  FIGHT = trainer ? 2 : 1;
  tune(TUNE_FIGHT);
  effect(SOUND_FIGHT);
  draw_fight();
  put(put(put(line, trainer ? "THE FRIEND SENDS|" : "A WILD|"), kinds[foe]), "!");
  say(line);
}

static u8 won(void) {
  u8 trainer = FIGHT == 2;
  effect(SOUND_WON);
  experience((u16)FOE_LEVEL << (trainer ? 5 : 4));
  end(0);
  return 1;
}

/* As in the game whose layout this is: FIGHT is 255 for a while, and only then 0. */
static u8 lost(void) {
  FIGHT = 0xFF;
  RESULT = 1;
  effect(SOUND_LOST);
  say("NOBODY CAN GO ON.|BACK TO REST!");
  FIGHT = 0;
  return 0;
}

u8 fight(u8 species, u8 level, u8 trainer) {
  u8 choice;
  begin(species, level, trainer);
  for (;;) {
    choice = menu();
    if (choice == 1 && throw_ball() || choice == 2 && run()) {
      end(2);
      return 0;
    }
    if (!choice) {
      hurt(FOE_HP, 2 + (MEMBER(mine)[AT_LEVEL] >> 1) + (chance() & 3));
      draw_names();
      if (!get16(FOE_HP)) return won();
    }
    if (foe_turn()) {
      end(0);
      return 0;
    }
    if (!next_alive()) return lost();
    draw_creature(7, 3, SPECIES[mine]);
    draw_names();
  }
}
