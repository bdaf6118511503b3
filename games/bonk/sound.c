/* Sound. Channels 2 and 3 carry the tune and nothing else, so that nothing the player does changes them: what they
   play is a function of the tune, the frame since its start and the seed. Effects have channels 1 and 4. */
#include "bonk.h"

/* A mellow wave for the bass: a rounded triangle of 32 steps. */
static const u8 wave[16] = {0x01, 0x24, 0x57, 0x9B, 0xCD, 0xEE, 0xFF, 0xFF, 0xFF, 0xFE, 0xED, 0xCB, 0x97, 0x54, 0x21, 0x00};

/* --- music --------------------------------------------------------------------------------------------------- */
static u8 tune, tune_at, tune_wait;
static u16 tune_random;
static u8 lead_set, bass_set;           /* 1: the next vertical blank starts a note; 2 (bass): silence */
static u8 lead_duty, lead_loud;
static u16 lead_pitch, bass_pitch;

void music_play(u8 id) {
  __asm__("di");
  tune = id;
  tune_at = tune_wait = 0;
  lead_set = 0;
  bass_set = 2;
  tune_random = set_seed ^ ((u16)id << 9) ^ 0x2F6B;
  if (!tune_random) tune_random = 1;
  g_music = set_music == OFF ? TUNE_NONE : id;
  g_music_tick = 0;
  __asm__("ei");
}

void music_write(void) {
  if (lead_set) {
    NR21 = lead_duty;
    NR22 = lead_loud;
    NR23 = (u8)lead_pitch;
    NR24 = (u8)(lead_pitch >> 8) | 0x80;
    lead_set = 0;
  }
  if (bass_set == 1) {
    NR30 = 0x80;
    NR32 = 0x40;
    NR33 = (u8)bass_pitch;
    NR34 = (u8)(bass_pitch >> 8) | 0x80;
  } else if (bass_set == 2) NR32 = 0x00;
  bass_set = 0;
}

static u16 music_random(void) {
  tune_random ^= tune_random << 7;
  tune_random ^= tune_random >> 9;
  tune_random ^= tune_random << 8;
  return tune_random;
}

void music_step(void) {
  const u8 *at;
  u8 note;
  if (!g_music) return;
  ++g_music_tick;
  if (tune_wait) {
    --tune_wait;
    return;
  }
  if (set_music == 2 && tune < TUNE_TITLE) { /* a new random note on both channels every third frame */
    tune_wait = 2;
    lead_duty = 0x80;
    lead_loud = 0x62;
    lead_pitch = 0x400 | (music_random() & 0x3FF);
    bass_pitch = 0x500 | (music_random() & 0x2FF);
    lead_set = bass_set = 1;
    return;
  }
  tune_wait = tune_tempo[tune - 1] - 1;
  at = tune_notes + tune_start[tune - 1] + (tune_at << 1);
  note = *at;
  if (note > 1) {
    lead_duty = tune_duty[tune - 1];
    lead_loud = tune_loud[tune - 1];
    lead_pitch = pitches[note - 2];
    lead_set = 1;
  }
  note = at[1];
  if (note > 1) {
    bass_pitch = pitches[note + 10]; /* the wave channel sounds an octave below its register */
    bass_set = 1;
  } else if (note == 1) bass_set = 2;
  if (++tune_at == tune_length[tune - 1]) tune_at = tune == TUNE_LOST ? tune_at - 1 : 0;
}

/* --- effects on channel 1 ------------------------------------------------------------------------------------- */
/* Pairs of note (an index of the pitch table; 0 rests) and frames; 0 frames end the effect. */
static const u8 seq_ding[] = {59, 3, 64, 12, 0, 0};
static const u8 seq_door[] = {31, 3, 36, 3, 43, 4, 0, 0};
static const u8 seq_key[] = {48, 5, 52, 5, 55, 5, 60, 14, 0, 0};
static const u8 seq_sign[] = {45, 3, 50, 5, 0, 0};
static const u8 seq_badge[] = {36, 8, 40, 8, 43, 8, 48, 12, 43, 6, 48, 24, 0, 0};
static const u8 seq_level[] = {52, 4, 55, 4, 59, 8, 0, 0};
static const u8 seq_over[] = {31, 10, 28, 10, 24, 10, 19, 24, 0, 0};
static const u8 seq_win[] = {36, 6, 36, 6, 36, 6, 43, 18, 41, 8, 43, 8, 48, 40, 0, 0};
static const u8 *const sequences[] = {0, seq_ding, 0, 0, seq_door, seq_key, seq_sign, seq_badge, seq_level, seq_over, seq_win};
static const u8 duties[] = {0, 0xC0, 0x00, 0x80, 0x80, 0x80, 0x40, 0x80, 0x80, 0x40, 0x80};
static const u8 louds[] = {0, 0xF1, 0xF2, 0x00, 0xA1, 0xD2, 0xA1, 0xD3, 0xC1, 0xD3, 0xD4};
/* Beeps of the chargers of rows 1 to 6: F6 C#6 A5 F5 C#5 A4. */
static const u8 row_notes[] = {53, 53, 49, 45, 41, 37, 33, 33};

static const u8 *seq;
static u8 seq_id, seq_wait, voice_note, voice_hum;
static u8 ch1_set, ch1_duty, ch1_loud, pan;
static u16 ch1_pitch;
static u8 ch4_set, ch4_loud, ch4_pitch, ch4_wait;

void effect(u8 id) {
  seq_id = id;
  seq = sequences[id];
  seq_wait = 0;
}

static void voice(u8 note, u8 duty, u8 loud) {
  ch1_duty = duty;
  ch1_loud = loud;
  ch1_pitch = pitches[note];
  ch1_set = 1;
}

/* Channel 1 has one owner a frame: a one-shot effect, else a charger's beeps, else the hum of a hidden coin. */
void effects_step(void) {
  u8 was = g_sfx;
  if (seq && !seq_wait) {
    if (seq[1]) {
      if (*seq) voice(*seq, duties[seq_id], louds[seq_id]);
      seq_wait = seq[1];
      seq += 2;
    } else seq = 0;
  }
  if (seq) {
    --seq_wait;
    g_sfx = seq_id;
    pan = 0xFF;
  } else if (g_charger_phase == 1) {
    g_sfx = SFX_CHARGER;
    pan = g_charger_side ? 0xEF : 0xFE;
    if (was != SFX_CHARGER || !--voice_note) { /* a beep every sixth frame */
      voice(row_notes[g_charger_row], 0x00, 0xF1);
      voice_note = 6;
    }
  } else if (g_hum && g_phase == PHASE_PLAY) {
    i16 up = (i16)g_y - g_coin_y;
    u8 note = 33 + (u8)(up >> 3);
    g_sfx = SFX_HUM;
    pan = 0xFF;
    if (g_coin_x > g_x + 12) pan = 0xEF;
    else if (g_x > g_coin_x + 12) pan = 0xFE;
    if (was != SFX_HUM || voice_hum != g_hum || voice_note != note) {
      voice(note, 0x80, g_hum << 4);
      voice_hum = g_hum;
      voice_note = note;
    }
  } else {
    g_sfx = SFX_NONE;
    pan = 0xFF;
    if (was) ch1_set = 2;
  }
  if (ch4_wait && !--ch4_wait) g_noise = NOISE_NONE;
}

/* --- effects on channel 4 -------------------------------------------------------------------------------------- */
static const u8 noise_loud[] = {0, 0, 0xF1, 0xE2, 0xF3, 0xA4, 0x71, 0xF1};
static const u8 noise_pitch[] = {0, 0, 0x39, 0x54, 0x66, 0x7A, 0x21, 0x4A};
static const u8 noise_time[] = {0, 10, 14, 24, 30, 24, 8, 12};

/* Start an effect; the thud of a bounce takes loudness and pitch from the speed (1/16 pixel a frame). */
void noise(u8 id, u8 speed) {
  if (ch4_wait && g_noise > id && g_noise <= NOISE_GROWL) return; /* what matters more goes on */
  if (id == NOISE_BONK) {
    u8 loud = 3 + (speed >> 3), step = speed >> 3;
    if (loud > 15) loud = 15;
    ch4_loud = (loud << 4) | 1;
    if (step > 10) step = 10;
    ch4_pitch = ((7 - (step >> 1)) << 4) | (step & 1 ? 2 : 3);
  } else {
    ch4_loud = noise_loud[id];
    ch4_pitch = noise_pitch[id];
  }
  g_noise = id;
  ch4_wait = noise_time[id];
  ch4_set = 1;
}

void effects_write(void) {
  if (!set_effects) return;
  NR51 = pan;
  if (ch1_set == 1) {
    NR10 = 0;
    NR11 = ch1_duty;
    NR12 = ch1_loud;
    NR13 = (u8)ch1_pitch;
    NR14 = (u8)(ch1_pitch >> 8) | 0x80;
  } else if (ch1_set == 2) NR12 = 0;
  ch1_set = 0;
  if (ch4_set) {
    NR41 = 0;
    NR42 = ch4_loud;
    NR43 = ch4_pitch;
    NR44 = 0x80;
    ch4_set = 0;
  }
}

/* --- start ---------------------------------------------------------------------------------------------------- */
void sound_silence(void) {
  u8 i;
  NR52 = 0x00; /* off clears every channel: episodes start from one and the same state */
  NR52 = 0x80;
  NR50 = 0x77;
  NR51 = 0xFF;
  NR30 = 0x00;
  for (i = 0; i < 16; ++i) WAVE_RAM[i] = wave[i];
  NR30 = 0x80;
  seq = 0;
  ch1_set = ch4_set = ch4_wait = 0;
  lead_set = bass_set = 0;
  g_sfx = g_noise = 0;
  g_music = TUNE_NONE;
  pan = 0xFF;
}
