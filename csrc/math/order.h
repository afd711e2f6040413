// The orders that decide contests, each total, so that the outcome never depends on who came first.
#pragma once

#include "portable.h"

namespace mgassign {

// Of two objects that want a point by equal scores: the smaller area, then the lower index. An area that is no number
// counts as larger than every other.
MGASSIGN_HD bool smaller_object(float area_a, int64_t index_a, float area_b, int64_t index_b) {
  if (area_a < area_b) return true;
  if (area_b < area_a) return false;
  const bool nan_a = area_a != area_a, nan_b = area_b != area_b;
  return nan_a == nan_b ? index_a < index_b : nan_b;
}

// Among the points that stand for an object: the higher score; then the lower point index.
struct ScoredPoint {
  float score;
  int32_t point;
};

MGASSIGN_HD bool ranks_before(const ScoredPoint& a, const ScoredPoint& b) {
  return a.score > b.score || (a.score == b.score && a.point < b.point);
}

// Points in that order as one number: larger is better, and above 0. Scores are above 0, where the order of floats is
// that of their bits.
MGASSIGN_HD uint64_t rank_key(float score, int64_t point) {
  return static_cast<uint64_t>(bits_of(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(point));
}
MGASSIGN_HD float score_of_key(uint64_t key) { return float_of(static_cast<uint32_t>(key >> 32)); }
MGASSIGN_HD int64_t point_of_key(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// A point that an object chose: its score, and what the object claims it with against others that chose it.
struct Choice {
  float score;
  int32_t point;
  float claim;
};

MGASSIGN_HD bool ranks_before(const Choice& a, const Choice& b) {
  return ranks_before(ScoredPoint{a.score, a.point}, ScoredPoint{b.score, b.point});
}

// Floats in their order as integers, -0 before 0: bits of negative numbers count down.
MGASSIGN_HD int32_t ordered(float value) {
  const int32_t bits = static_cast<int32_t>(bits_of(value));
  return bits ^ (bits >> 31 & 0x7fffffff);
}
MGASSIGN_HD float unordered(int32_t key) { return float_of(static_cast<uint32_t>(key ^ (key >> 31 & 0x7fffffff))); }

// Among the objects that claim a point: the higher claim; then the lower index. As one number: larger is better, and
// above 0.
constexpr uint32_t kSign = 0x80000000u;  // ordered() counts from below 0, keys do not
MGASSIGN_HD uint64_t claim_key(float claim, int32_t object) {
  return static_cast<uint64_t>(static_cast<uint32_t>(ordered(claim)) ^ kSign) << 32 | ~static_cast<uint32_t>(object);
}
MGASSIGN_HD float claim_of_key(uint64_t key) { return unordered(static_cast<int32_t>(key >> 32 ^ kSign)); }
MGASSIGN_HD int32_t object_of_key(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

}  // namespace mgassign
