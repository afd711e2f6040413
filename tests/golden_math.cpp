// Prints a hash of what each function of csrc/math gives over fixed inputs: the same on every compiler and processor.
#include <cstdio>
#include <initializer_list>

#include "../csrc/math/boxes.h"
#include "../csrc/math/centerness.h"
#include "../csrc/math/elementary.h"
#include "../csrc/math/grid.h"
#include "../csrc/math/order.h"
#include "../csrc/math/rules/task_aligned.h"

namespace {

using namespace mgassign;

// FNV-1a over the bits of results. All NaN count as one: which bits they have is the processor's business.
class Hash {
 public:
  void add(float value) {
    const uint32_t bits = value == value ? bits_of(value) : 0x7fc00000u;
    for (int shift = 0; shift < 32; shift += 8) state_ = (state_ ^ (bits >> shift & 0xff)) * 0x100000001b3u;
  }
  void print(const char* name) const { std::printf("%s %016llx\n", name, static_cast<unsigned long long>(state_)); }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

// Numbers of a linear congruential generator, its high bits.
class Random {
 public:
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float below(float end) { return static_cast<float>(bits() >> 8) * 0x1p-24f * end; }
  Box box(float extent) {
    const float x = below(extent), y = below(extent);
    return {x, y, x + below(extent), y + below(extent)};
  }

 private:
  uint64_t state_ = 1;
};

// A function of one number: over all float32 of a coarse raster, not only the ordinary ones.
template <typename Function>
void hash_unary(const char* name, Function function) {
  Hash hash;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 4099)
    hash.add(function(float_of(static_cast<uint32_t>(bits))));
  hash.print(name);
}

// Where the points of a level lie inside an interval whose ends are often points themselves.
void hash_grid(Random& random) {
  Hash spans, levels;
  for (int i = 0; i < 100000; ++i) {
    const Axis axis{1.0f + random.below(8.0f), random.below(9.0f) - 4.0f};
    const int64_t count = random.bits() % 40;
    const float low = i % 3 ? axis.coordinate(random.bits() % 40) : random.below(400.0f) - 50.0f;
    const float high = i % 2 ? axis.coordinate(random.bits() % 40) : low + random.below(99.0f);
    for (const float margin : {0.0f, 0.5f}) {
      const Span span = strictly_between(axis, count, low, high, margin);
      spans.add(static_cast<float>(span.begin));
      spans.add(static_cast<float>(span.end));
    }
    const float side = static_cast<float>(random.bits() % 64), lo = static_cast<float>(random.bits() % 40);
    const Level level{5, 1 + count, 7, 8.0f, axis, {4.0f, 2.0f}, lo, lo + static_cast<float>(random.bits() % 9)};
    const Location location = level.location_of(7 + random.bits() % static_cast<uint32_t>(5 * level.width));
    levels.add(location.x);
    levels.add(location.y);
    levels.add(level.accepts(side) + 2.0f * level.may_accept_inside(side, side * 0.5f));
    levels.add(level.may_accept_inside(side * 0.25f, side));
  }
  spans.print("spans");
  levels.print("levels");
}

// The same where points are so many that several share a coordinate: the guess by division is off there.
void hash_far_spans(Random& random) {
  Hash spans;
  for (int i = 0; i < 20000; ++i) {
    const Axis axis{0.25f + random.below(3.0f), random.below(9.0f) - 4.0f};
    const int64_t k = (1 << 21) + random.bits() % (1 << 25);
    const float at = axis.coordinate(k), near = float_of(bits_of(at) + random.bits() % 5 - 2);
    const Span span = strictly_between(axis, 1 << 26, near, axis.coordinate(k + random.bits() % 9));
    spans.add(static_cast<float>(span.begin - k));
    spans.add(static_cast<float>(span.end - k));
  }
  spans.print("far_spans");
}

// What decides contests, among few numbers so that most are ties.
void hash_orders(Random& random) {
  Hash orders;
  const auto number = [&random] {
    return random.bits() % 9 ? static_cast<float>(random.bits() % 3) : float_of(0x7fc00000u);
  };
  for (int i = 0; i < 20000; ++i) {
    const float a = number(), b = number();
    const int32_t index_a = random.bits() % 3, index_b = random.bits() % 3;
    orders.add(smaller_object(a, index_a, b, index_b));
    orders.add(ranks_before(Choice{a, index_a, b}, Choice{b, index_b, a}));
  }
  orders.print("orders");
}

void hash_task_alignment(Random& random) {
  Hash windows, scores;
  for (int i = 0; i < 20000; ++i) {
    const double exponents[] = {0.0, 0.5, 1.0, 2.5, 6.0};
    const TaskAligned rule{Power(exponents[random.bits() % 5]),
                           Power(exponents[1 + random.bits() % 4]),
                           i % 2 == 0,
                           false,
                           random.below(2.0f),
                           random.below(32.0f),
                           i % 3 ? random.below(32.0f) : 0.0f,
                           false,
                           1e-9f,
                           i % 5 == 0};
    const TaskAligned::Object object = rule.object(random.box(64.0f));
    const Box predicted = random.box(64.0f), window = rule.window(object.box);
    windows.add(window.x1);
    windows.add(window.y1);
    windows.add(window.x2);
    windows.add(window.y2);
    windows.add(rule.holds(window, {random.below(128.0f), random.below(128.0f)}));
    windows.add(rule.holds(window, {window.x1 + rule.margin, random.below(128.0f)}));
    const float overlap = is_valid(predicted) && is_valid(object.box) ? rule.overlap(predicted, object) : 0.0f;
    const float score = rule.score(rule.probability(random.below(9.0f) - 4.0f), overlap);
    scores.add(overlap);
    scores.add(score);
    scores.add(rule.least_overlap(random.below(1.0f)));
    scores.add(rule.target(score, score + random.below(1.0f), overlap));
  }
  windows.print("windows");
  scores.print("scores");
}

}  // namespace

int main() {
  hash_unary("exp", exp_f32);
  hash_unary("log", log_f32);
  hash_unary("atan", atan_f32);
  hash_unary("sigmoid", sigmoid_f32);
  hash_unary("probability", probability_f32);
  for (const double exponent : {0.0, 0.25, 0.5, 1.0, 1.75, 6.0, 20.0}) {
    char name[32];
    std::snprintf(name, sizeof(name), "power_%g", exponent);
    const Power power(exponent);
    hash_unary(name, [&power](float x) { return x > 0.0f || x != x ? power.of(x) : 0.0f; });
    Hash looped;
    power.with([&](const auto& function) {
      for (int i = 0; i < 4096; ++i) looped.add(function(static_cast<float>(i) * 0x1p-12f));
    });
    std::snprintf(name, sizeof(name), "powers_%g", exponent);
    looped.print(name);
  }

  Random random, others;  // the second for what came later: the first hashes have to stay
  Hash iou, centerness, amplified, complete, shares, valid, compared;
  for (int i = 0; i < 200000; ++i) {
    const float extent = i % 5 == 0 ? 1e20f : 64.0f;  // of the large ones areas overflow
    const Box a = random.box(extent), b = random.box(extent);
    iou.add(iou_of(a, area_of(a), b, area_of(b)));
    complete.add(complete_iou_of(a, b, angle_of(b)));
    shares.add(share_inside(a, b));
    Box odd = a;
    const float odd_values[] = {kInfinity, -kInfinity, float_of(0x7fc00000u), 0.0f};
    (i % 4 < 2 ? (i % 2 ? odd.x1 : odd.y1) : (i % 2 ? odd.x2 : odd.y2)) = odd_values[others.bits() % 4];
    valid.add(is_valid(a) + 2.0f * is_valid(odd));
    const Comparison comparison =
        compare(overlap_of(a, area_of(a), b, area_of(b)), overlap_of(b, area_of(b), odd, area_of(odd)),
                is_huge(area_of(a)) ? kInfinity : kDoubt);
    compared.add(comparison.greater() + 2.0f * comparison.close());
    const AxisDistances x = axis_distances(a.x1 + random.below(a.x2 - a.x1), a.x1, a.x2);
    const AxisDistances y = axis_distances(a.y1 + random.below(a.y2 - a.y1), a.y1, a.y2);
    const float c = centerness_of(x.ratio, y.ratio);
    centerness.add(c);
    centerness.add(larger(x.longest, y.longest));
    const float p = random.below(1.0f), sigma = 1.0f + random.below(3.0f) + 0x1p-10f;
    amplified.add(amplify(c, p, sigma));
  }
  iou.print("iou");
  centerness.print("centerness");
  amplified.print("amplified");
  complete.print("complete_iou");
  shares.print("shares");
  valid.print("valid");
  compared.print("compared");
  hash_grid(others);
  hash_orders(others);
  hash_task_alignment(others);
  hash_far_spans(others);
}
