/* Start, title, and from episode to episode. */
#include "bonk.h"

static void defaults(void) {
  set_go = 0;
  set_music = 1;
  set_decoys = 0;
  set_darkness = MAP;
  set_chargers = MAP;
  set_charger_gap = 8;
  set_start = 4;
  set_opponents = 1;
  set_hp = 6;
  set_seed = 1;
  set_effects = 1;
}

/* What a host may have written out of range must not break the game. */
static void settings_checked(void) {
  if (set_start > 8) set_start = 4;
  if (set_hp < 1 || set_hp > 9) set_hp = 6;
  if (set_charger_gap < 1 || set_charger_gap > 127) set_charger_gap = 8;
}

/* Bonk hops along the wall until a host writes set_go or a person presses START. */
static void title(void) {
  u16 time = 0;
  u8 x = 0, hop;
  g_phase = PHASE_TITLE;
  while (!set_go && !(keys_new & KEY_START)) {
    if (++time == 20) music_play(TUNE_TITLE);
    if (!((u8)time & 31) || time == 1) title_blink(!(time & 32));
    hop = (u8)time & 31;
    hop = hop < 16 ? hop : 31 - hop;
    sprites_clear();
    sprite(++x, 72 - hop, T_HERO, 0);
    sprite(x - 40, 72, time & 8 ? T_BLOBA : T_BLOBB, 0);
    sprite(x - 64, 72, time & 8 ? T_HUNTERA : T_HUNTERB, 0);
    frame();
  }
  if (!set_go) set_seed = time;
  settings_checked();
}

void main(void) {
  IE = 0;
  sound_silence();
  defaults();
  video_start();
  sprites_clear();
  IF = 0;
  IE = 1;
  __asm__("ei");
  frame();
  title();
  play();
  __asm__("jp 0x0150"); /* everything from the start, memory cleared */
}
