// The buttons that are held, and those that went down since the last call. Its user has `u8 keys, keys_new`.
#ifndef KEYS_H
#define KEYS_H

static void read_keys(void) {
  u8 now;
  P1 = 0x20;
  now = P1;
  now = P1;
  keys_new = keys;
  keys = ~now & 0x0F;
  P1 = 0x10;
  now = P1;
  now = P1;
  now = P1;
  now = P1;
  keys |= (u8)(~now & 0x0F) << 4;
  P1 = 0x30;
  keys_new = keys & ~keys_new;
}

#endif
