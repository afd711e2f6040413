// Keeps libraries built beside a newer glibc loadable by glibc 2.28, which torch's own wheels ask for. Two symbols that
// come in through headers would raise that to 2.34:
//   __libc_single_threaded (2.32)  by which libstdc++'s shared_ptr skips its atomics; "not single" is always right
//   dlsym (2.34)                   by which torch's headers look for newer functions; it moved here from libdl
// Where glibc is older, its own libdl resolves dlsym, and headers older than 2.32 do not ask for the other.
#pragma once

#if defined(__linux__)
#include <features.h>

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 32)
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
#if defined(__x86_64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.17");
#endif
#endif
#endif
