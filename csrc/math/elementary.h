// exp, log, atan, powers and the sigmoid from IEEE basic operations, within 2 ulp of the exact value (the sigmoid
// within 3, and 0 below -88.72) and free of branches.
//
// Library versions differ in the last bit between platforms, and one bit decides a tie. The polynomials are
// minimax fits (relative error below 0.1 of half an ulp) made for these intervals.
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

// The angle whose tangent is x, in (-pi/2, pi/2).
MGASSIGN_HD float atan_f32(float x) {
  constexpr float kTanPi8 = 0x1.a8279ap-2f, kTan3Pi8 = 0x1.3504f4p+1f;
  const float a = float_of(bits_of(x) & 0x7fffffffu);

  // atan(a) = whole + atan(z) with |z| <= tan(pi / 8) and whole one of 0, pi / 4, pi / 2, each in two parts
  const bool large = a > kTan3Pi8, middle = a > kTanPi8;
  const float z = (large ? -1.0f : (middle ? a - 1.0f : a)) / (large ? a : (middle ? a + 1.0f : 1.0f));
  const float whole = large ? 0x1.921fb6p+0f : (middle ? 0x1.921fb6p-1f : 0.0f);
  const float rest = large ? -0x1.777a5cp-25f : (middle ? -0x1.777a5cp-26f : 0.0f);

  const float w = z * z;
  float q = -0x1.f1e8b6p-5f;
  q = q * w + 0x1.b1eb48p-4f;
  q = q * w - 0x1.23b514p-3f;
  q = q * w + 0x1.999196p-3f;
  q = q * w - 0x1.55554ap-2f;
  return float_of(bits_of(whole + (z + (z * w * q + rest))) | (bits_of(x) & 0x80000000u));
}

// x ^ exponent for x >= 0, through logarithms in double precision, so that it is exact but for the last rounding;
// 0 for NaN, but 1 where the exponent is 0.
MGASSIGN_HD float pow_f32(float x, double exponent) {
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcdu;
  constexpr double kLn2 = 0x1.62e42fefa39efp-1, kLog2E = 0x1.71547652b82fep+0, kToInteger = 0x1.8p+52;

  // x = 2^n * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = 2 artanh(f / (2 + f))
  const uint64_t above = bits_of(static_cast<double>(x)) - kSqrtHalf;
  const double n = static_cast<double>(static_cast<int32_t>(above >> 32) >> 20);
  const double f = double_of((above & 0x000fffffffffffffu) + kSqrtHalf) - 1.0;
  const double z = f / (2.0 + f), w = z * z;
  double series = 1.0 / 13;
  series = series * w + 1.0 / 11;
  series = series * w + 1.0 / 9;
  series = series * w + 1.0 / 7;
  series = series * w + 1.0 / 5;
  series = series * w + 1.0 / 3;
  const double log = n * kLn2 + (2.0 * z + 2.0 * z * w * series);

  // e^y = 2^m * e^r with |r| <= ln(2) / 2
  double y = exponent * log;
  y = y < -105.0 ? -105.0 : (y > 90.0 ? 90.0 : y);
  const double shifted = y * kLog2E + kToInteger;
  const double r = y - (shifted - kToInteger) * kLn2;
  double e_to_r = 1.0 / 362880;
  e_to_r = e_to_r * r + 1.0 / 40320;
  e_to_r = e_to_r * r + 1.0 / 5040;
  e_to_r = e_to_r * r + 1.0 / 720;
  e_to_r = e_to_r * r + 1.0 / 120;
  e_to_r = e_to_r * r + 1.0 / 24;
  e_to_r = e_to_r * r + 1.0 / 6;
  e_to_r = e_to_r * r + 0.5;
  e_to_r = e_to_r * r + 1.0;
  e_to_r = e_to_r * r + 1.0;
  const uint64_t m = bits_of(shifted) - bits_of(kToInteger);
  const float power = static_cast<float>(e_to_r * double_of((m + 1023u) << 52));

  const float of_zero = exponent == 0.0 ? 1.0f : 0.0f;
  return x > 0.0f ? (x < kInfinity ? power : kInfinity) : of_zero;
}

// A power with an exponent that is known before: those that assigners use need no logarithm.
class Power {
 public:
  explicit Power(double exponent)
      : exponent_(exponent),
        way_(exponent == 0.5 ? kRoot
             : exponent == 1 ? kSame
             : exponent == 6 ? kSixth
                             : kAny) {}

  MGASSIGN_HD float exponent() const { return static_cast<float>(exponent_); }

  // Calls body(power) with the function, so that a loop over many numbers asks only once which it is.
  template <typename Body>
  MGASSIGN_HD void with(const Body& body) const {
    if (way_ == kSame) return body(Same());
    if (way_ == kRoot) return body(Root());
    if (way_ == kSixth) return body(Sixth());
    body(Any{exponent_});
  }
  MGASSIGN_HD float of(float x) const {
    if (way_ == kSame) return Same()(x);
    if (way_ == kRoot) return Root()(x);
    return way_ == kSixth ? Sixth()(x) : Any{exponent_}(x);
  }

 private:
  struct Same {
    MGASSIGN_HD float operator()(float x) const { return x; }
  };
  struct Root {
    MGASSIGN_HD float operator()(float x) const { return square_root(x); }
  };
  struct Sixth {  // the square is exact in double precision, the other two roundings are far beneath the last one
    MGASSIGN_HD float operator()(float x) const {
      const double square = static_cast<double>(x) * x;
      return static_cast<float>(square * square * square);
    }
  };
  struct Any {
    double exponent;
    MGASSIGN_HD float operator()(float x) const { return pow_f32(x, exponent); }
  };

  enum Way : int32_t { kSame, kRoot, kSixth, kAny };
  double exponent_;
  Way way_;
};

// Sigmoid of a logit: 0 at -inf and for NaN, 1 at +inf.
MGASSIGN_HD float sigmoid_f32(float logit) {
  const float p = 1.0f / (1.0f + exp_f32(-logit));
  return p == p ? p : 0.0f;
}

// A value given as a probability: held to [0, 1], 0 for NaN.
MGASSIGN_HD float probability_f32(float value) { return value > 0.0f ? smaller(value, 1.0f) : 0.0f; }

// The probability that a raw score means, which is a logit where `sigmoid` says so.
MGASSIGN_HD float probability_of(float raw, bool sigmoid) { return sigmoid ? sigmoid_f32(raw) : probability_f32(raw); }

}  // namespace mgassign
