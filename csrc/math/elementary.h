// exp, log and the sigmoid from IEEE basic operations, within 2 ulp of the exact value and free of branches.
//
// Library versions differ in the last bit between platforms, and one bit decides a tie. The polynomials are
// minimax fits (relative error below 0.1 of half an ulp) made for these two intervals.
#pragma once

#include "portable.h"

namespace mgassign {

// ln 2 in two parts: the first has 15 significant bits, so its product with any exponent is exact.
constexpr float kLn2High = 0x1.62e4p-1f;
constexpr float kLn2Low = 0x1.7f7d1cp-20f;

// e^x. Rounds to 0 below about -103.97 and to infinity above about 88.72; NaN stays NaN. Never decreases
// where x increases (checked over every float32), so sorting by exp(x) never contradicts sorting by x.
MGASSIGN_HD float exp_f32(float x) {
  constexpr float kLog2E = 0x1.715476p+0f;
  constexpr float kToInteger = 0x1.8p+23f;  // adding it leaves the nearest integer in the low mantissa bits
  x = smaller(larger(x, -104.0f), 89.0f);

  // e^x = 2^n * e^r with |r| <= ln(2) / 2
  const float shifted = x * kLog2E + kToInteger;
  const float n = shifted - kToInteger;
  const float r = (x - n * kLn2High) - n * kLn2Low;

  float q = 0x1.6a2352p-10f;
  q = q * r + 0x1.123a6cp-7f;
  q = q * r + 0x1.5558f4p-5f;
  q = q * r + 0x1.55549p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const float e_to_r = 1.0f + (r + (r * r) * q);

  // 2^n in two factors: n reaches -150, where one factor would underflow before the product does.
  const uint32_t exponent = bits_of(shifted) - bits_of(kToInteger);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  return e_to_r * float_of((half + 127u) << 23) * float_of((exponent - half + 127u) << 23);
}

// Natural logarithm: -inf at 0, NaN below 0 and for NaN, +inf at +inf.
MGASSIGN_HD float log_f32(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const bool subnormal = x < 0x1p-126f;
  const float scaled = subnormal ? x * 0x1p+23f : x;

  // x = 2^n * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))
  const uint32_t above = bits_of(scaled) - kSqrtHalf;
  const float n = static_cast<float>(static_cast<int32_t>(above) >> 23) - (subnormal ? 23.0f : 0.0f);
  const float f = float_of((above & 0x007fffffu) + kSqrtHalf) - 1.0f;

  float p = -0x1.38b452p-4f;
  p = p * f + 0x1.056f9ap-3f;
  p = p * f - 0x1.0d8edp-3f;
  p = p * f + 0x1.22d812p-3f;
  p = p * f - 0x1.547126p-3f;
  p = p * f + 0x1.99a014p-3f;
  p = p * f - 0x1.00022ap-2f;
  p = p * f + 0x1.555554p-2f;
  const float ln = n * kLn2High + (f + (n * kLn2Low + (f * f) * (f * p - 0.5f)));

  const float below_zero = x == 0.0f ? -kInfinity : float_of(0x7fc00000u);
  return x > 0.0f ? (x < kInfinity ? ln : kInfinity) : below_zero;
}

// Sigmoid of a logit: 0 at -inf and for NaN, 1 at +inf.
MGASSIGN_HD float sigmoid_f32(float logit) {
  const float p = 1.0f / (1.0f + exp_f32(-logit));
  return p == p ? p : 0.0f;
}

// A value given as a probability: held to [0, 1], 0 for NaN.
MGASSIGN_HD float probability_f32(float value) { return value > 0.0f ? smaller(value, 1.0f) : 0.0f; }

}  // namespace mgassign
