// What the scalar math needs from each compiler, so that one header serves host and device.
//
// Every function below csrc/math is built from IEEE-754 basic operations (+ - * / sqrt, comparisons)
// in a fixed order. Compiled without contraction to fused multiply-add and without fast-math, it gives
// the same bits on every CPU and every GPU; that is what makes the assignments identical everywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define MGASSIGN_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Inlined wherever it is called, so that a loop compiled for an instruction set is so all through.
#define MGASSIGN_HD inline __attribute__((always_inline))
#else
#define MGASSIGN_HD inline
#endif

#if defined(__FAST_MATH__)
#error "mgassign must not be compiled with -ffast-math: results would differ between machines"
#endif

namespace mgassign {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kLargestFloat = std::numeric_limits<float>::max();

MGASSIGN_HD uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MGASSIGN_HD float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

MGASSIGN_HD uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MGASSIGN_HD double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Written as selects, not std::min/max or fminf/fmaxf: the first argument is returned when either is NaN,
// on host and device alike, and vectorizers turn them into single instructions.
MGASSIGN_HD float smaller(float a, float b) { return b < a ? b : a; }
MGASSIGN_HD float larger(float a, float b) { return b > a ? b : a; }

// "first ? a : b" for vector code: of two such choices by one condition compilers make a branch, and of what is stored
// by one masked stores, which are slow on many CPUs. Here they see only bits.
MGASSIGN_HD float chosen(bool first, float a, float b) {
#if defined(__CUDA_ARCH__)
  return first ? a : b;
#else
  const uint32_t mask = -uint32_t{first};
  return float_of((bits_of(a) & mask) | (bits_of(b) & ~mask));
#endif
}

// smaller() and larger() where neither is NaN (and the sign of a zero does not matter): one instruction on a GPU, too.
#if defined(__CUDA_ARCH__)
MGASSIGN_HD float smaller_number(float a, float b) { return fminf(a, b); }
MGASSIGN_HD float larger_number(float a, float b) { return fmaxf(a, b); }
#else
MGASSIGN_HD float smaller_number(float a, float b) { return smaller(a, b); }
MGASSIGN_HD float larger_number(float a, float b) { return larger(a, b); }
#endif

MGASSIGN_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

MGASSIGN_HD double square_root(double value) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

// False for NaN and for both infinities.
MGASSIGN_HD bool is_finite(float value) { return value - value == 0.0f; }

}  // namespace mgassign
