/* Sound: a tune of sixteen notes on channel 2, effects on channel 1, bumps and hits as noise on channel 4. */
#include "course.h"

static u8 tune_note, tune_time, effect_note, effect_time, noise_time;

/* Semitones above C2; 0 is a rest in a tune, and the end of an effect. */
static const u8 tunes[5][16] = {
  {25, 0, 29, 0, 32, 0, 29, 0, 27, 0, 30, 0, 34, 0, 30, 0},
  {25, 29, 32, 37, 32, 29, 25, 0, 23, 27, 30, 35, 30, 27, 23, 0},
  {22, 0, 0, 25, 22, 0, 0, 28, 22, 0, 0, 25, 27, 0, 24, 0},
  {13, 25, 13, 25, 14, 26, 14, 26, 13, 25, 13, 25, 11, 23, 11, 23},
  {25, 32, 37, 41, 37, 32, 25, 32, 22, 29, 34, 37, 34, 29, 22, 29},
};
static const u8 effects[12][8] = {
  {0}, {0}, {30, 35, 0}, {49, 0}, {37, 25, 37, 25, 37, 25, 0}, {0}, {37, 41, 44, 49, 0}, {49, 44, 49, 53, 56, 61, 0},
  {41, 46, 51, 0}, {44, 49, 44, 49, 53, 0}, {37, 37, 44, 44, 49, 53, 56, 0}, {37, 34, 31, 28, 25, 0},
};

void sound_start(void) {
  NR52 = 0x80;
  NR50 = 0x77;
  NR51 = 0xFF;
  NR10 = 0;
  tune_time = 1;
}

void tune(u8 id) {
  TUNE = id;
  MUSIC_CHANNEL = id + 1;
  tune_note = 0;
  tune_time = 1;
}

void effect(u8 id) {
  EFFECT_NEW = id;
  if (id == SOUND_BUMP || id == SOUND_HIT) {
    NR42 = id == SOUND_HIT ? 0xD2 : 0x91;
    NR43 = id == SOUND_HIT ? 0x45 : 0x74;
    NR44 = 0x80;
    EFFECT_NOISE = id;
    noise_time = 12;
    return;
  }
  EFFECT_TONE = id;
  effect_note = 0;
  effect_time = 1;
}

void sound_step(void) {
  u8 note;
  if (!--tune_time) {
    tune_time = 12;
    note = tunes[TUNE][tune_note];
    tune_note = (tune_note + 1) & 15;
    NR22 = note ? 0x52 : 0x08;
    NR21 = 0x80;
    NR23 = (u8)pitches[note];
    NR24 = 0x80 | (u8)(pitches[note] >> 8);
  }
  if (EFFECT_TONE && !--effect_time) {
    effect_time = 5;
    note = effects[EFFECT_TONE][effect_note++];
    if (!note) EFFECT_TONE = 0;
    NR12 = note ? 0xA1 : 0x08;
    NR11 = 0x40;
    NR13 = (u8)pitches[note];
    NR14 = 0x80 | (u8)(pitches[note] >> 8);
  }
  if (EFFECT_NOISE && !--noise_time) EFFECT_NOISE = 0;
}
