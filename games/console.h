/* What every cartridge needs of the console: short types, its registers, the buttons as read_keys gives them. */
#ifndef CONSOLE_H
#define CONSOLE_H

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned int u16;
typedef int i16;

#define REG(address) (*(volatile u8 *)(address))
#define P1 REG(0xFF00)
#define IF REG(0xFF0F)
#define NR10 REG(0xFF10)
#define NR11 REG(0xFF11)
#define NR12 REG(0xFF12)
#define NR13 REG(0xFF13)
#define NR14 REG(0xFF14)
#define NR21 REG(0xFF16)
#define NR22 REG(0xFF17)
#define NR23 REG(0xFF18)
#define NR24 REG(0xFF19)
#define NR30 REG(0xFF1A)
#define NR31 REG(0xFF1B)
#define NR32 REG(0xFF1C)
#define NR33 REG(0xFF1D)
#define NR34 REG(0xFF1E)
#define NR41 REG(0xFF20)
#define NR42 REG(0xFF21)
#define NR43 REG(0xFF22)
#define NR44 REG(0xFF23)
#define NR50 REG(0xFF24)
#define NR51 REG(0xFF25)
#define NR52 REG(0xFF26)
#define WAVE_RAM ((volatile u8 *)0xFF30)
#define LCDC REG(0xFF40)
#define SCY REG(0xFF42)
#define SCX REG(0xFF43)
#define LY REG(0xFF44)
#define BGP REG(0xFF47)
#define OBP0 REG(0xFF48)
#define OBP1 REG(0xFF49)
#define WY REG(0xFF4A)
#define WX REG(0xFF4B)
#define IE REG(0xFFFF)

enum { KEY_RIGHT = 1, KEY_LEFT = 2, KEY_UP = 4, KEY_DOWN = 8, KEY_A = 16, KEY_B = 32, KEY_START = 128 };

#endif
