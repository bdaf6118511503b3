; Start of the ROM: vector of the vertical blank, entry point, clearing of memory.
; Static variables have no initial values: everything is zero when main starts.
        .module crt0
        .globl  _main
        .globl  _vblank

        .area   _HEADER (ABS)
        .org    0x40
        jp      interrupt

        .org    0x100
        nop
        jp      start

; the header: no logo; makebin writes title and checksums
        .org    0x104
        .dw     0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        .dw     0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0

        .org    0x150
start:
        di
        ld      sp, #0xE000
        ld      hl, #0xC000
        ld      bc, #0x2000
clear:
        xor     a
        ld      (hl+), a
        dec     bc
        ld      a, b
        or      c
        jr      nz, clear
        ld      hl, #dma_code
        ld      c, #0x80
        ld      b, #10
dma_copy:
        ld      a, (hl+)
        ldh     (c), a
        inc     c
        dec     b
        jr      nz, dma_copy
        call    _main
forever:
        jr      forever

; copied to FF80: start the copy of C200-C29F to OAM and wait in high memory until it is done
dma_code:
        .db     0x3E, 0xC2, 0xE0, 0x46, 0x3E, 0x28, 0x3D, 0x20, 0xFD, 0xC9

interrupt:
        push    af
        push    bc
        push    de
        push    hl
        call    _vblank
        pop     hl
        pop     de
        pop     bc
        pop     af
        reti

        .area   _HOME
        .area   _CODE
        .area   _INITIALIZER
        .area   _GSINIT
        .area   _GSFINAL
        .area   _DATA
        .area   _INITIALIZED
        .area   _BSEG
        .area   _BSS
        .area   _HEAP
