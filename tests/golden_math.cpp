// Prints a hash of what each function of csrc/math gives over fixed inputs: the same on every compiler and processor.
#include <cstdio>

#include "../csrc/math/boxes.h"
#include "../csrc/math/centerness.h"
#include "../csrc/math/elementary.h"

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

}  // namespace

int main() {
  hash_unary("exp", exp_f32);
  hash_unary("log", log_f32);
  hash_unary("sigmoid", sigmoid_f32);
  hash_unary("probability", probability_f32);

  Random random;
  Hash iou, centerness, amplified;
  for (int i = 0; i < 200000; ++i) {
    const float extent = i % 5 == 0 ? 1e20f : 64.0f;  // of the large ones areas overflow
    const Box a = random.box(extent), b = random.box(extent);
    iou.add(iou_of(a, area_of(a), b, area_of(b)));
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
}
