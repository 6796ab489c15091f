// Compiles HK_FILE, the file that includes this one, once for each instruction set: in a namespace
// HK_SET, with HK_REGISTERS vector registers of HK_BYTES. Included once by a file, after all
// headers that are not of one set.
#define HK_SET baseline
#define HK_BYTES 16
#if defined(__aarch64__)
#define HK_REGISTERS 32
#else
#define HK_REGISTERS 16
#endif
#include HK_FILE
#undef HK_SET
#undef HK_BYTES
#undef HK_REGISTERS

#ifdef HK_HAS_SETS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define HK_SET avx2
#define HK_BYTES 32
#define HK_REGISTERS 16
#include HK_FILE
#undef HK_SET
#undef HK_BYTES
#undef HK_REGISTERS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define HK_SET avx512
#define HK_BYTES 64
#define HK_REGISTERS 32
#include HK_FILE
#undef HK_SET
#undef HK_BYTES
#undef HK_REGISTERS
#pragma GCC pop_options
#endif
