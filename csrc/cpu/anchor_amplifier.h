// Classify to Localize on anchors, a block at a time.
//
// It reads logits, and takes a logarithm and an exponential for each pair. Amplification lifts an overlap s to at
// most s ^ ((sigma - 1) / sigma) and never lowers it. So most pairs cannot win their anchor, and most anchors cannot be
// among an object's N_g best: it is first supposed that these have at least the overlap that made N_g. Where an object
// finds fewer (others, amplified more, took its anchors), less is asked of its anchors, until it has enough.
#pragma once

#include "../math/centerness.h"
#include "anchors.h"

namespace mgassign::cpu {

// An overlap so small that nothing beneath it is amplified to `score`. Room first for the score: the power is high
// where sigma is hardly more than 1.
MGASSIGN_INLINE float least_overlap(float score, float sigma) {
  return score > 0.0f ? 0.99f * exp_f32(log_f32(kWideRoom * score) * (sigma / (sigma - 1.0f))) : 0.0f;
}

// What a point whose best overlap is known asks of others. From 1 on it is one that was forced: it is not known.
void least_overlaps(const float* best, int64_t count, float sigma, float* least);

// Which boxes of a tile overlap the k-th object by what it needs and by what they do, by more than 0: writes them to
// found, in their order, with room for all and one more, and all overlaps; how many.
int64_t reaching(const BoxTile& tile, const Objects& objects, int64_t k, float needed, const float* needed_at,
                 float* overlap, int32_t* found);

// Which objects overlap a box by `overlap` or more, by more than 0, and need more or hardly less: writes their places
// to found; how many.
int64_t rivals(const Box& box, const Boxes& objects, const float* needed, float overlap, int32_t* found);

// Pairs of point and object whose amplified overlap is wanted, until enough have come together.
class AnchorAmplifier {
 public:
  AnchorAmplifier(float sigma, bool sigmoid) : sigma_(sigma), sigmoid_(sigmoid) {}

  float sigma() const { return sigma_; }
  float score(float overlap, float logit) const { return amplify(overlap, probability_of(logit, sigmoid_), sigma_); }
  bool is_full() const { return count_ + kTilePoints > kMost; }
  // Nobody wants to hear of scores below `asked`.
  void add(int64_t point, int32_t object, float overlap, float asked) {
    point_[count_] = static_cast<int32_t>(point);
    object_[count_] = object;
    asked_[count_] = asked;
    score_[count_++] = overlap;
  }
  // logit_of(point, object) reads what the network says: all together, since each is a wait for memory. Then calls
  // hear(point, object, score) for the pairs that score what is asked, in the order they came in.
  template <typename LogitOf, typename Hear>
  void flush(const LogitOf& logit_of, const Hear& hear) {
    for (int64_t i = 0; i < count_; ++i) logit_[i] = logit_of(point_[i], object_[i]);
    const int64_t num_heard = amplify_all();
    for (int64_t n = 0; n < num_heard; ++n) hear(point_[heard_[n]], object_[heard_[n]], score_[heard_[n]]);
    count_ = 0;
  }

 private:
  static constexpr int64_t kMost = 512;

  // Makes scores of overlaps; finds those that are asked for.
  int64_t amplify_all();

  float sigma_;
  bool sigmoid_;
  int64_t count_ = 0;
  int32_t point_[kMost], object_[kMost], heard_[kMost + 1];
  float score_[kMost], asked_[kMost], logit_[kMost];
};

// Scratch space of one thread with a block of anchors.
struct AnchorWorkspace {
  BlockWorkspace block;
  AnchorAmplifier amplifier;
  // Of each object that the block may have something for: its place in the image, its best point of the block, the
  // score it asks for, the label.
  std::vector<int32_t> place;
  std::vector<ScoredPoint> best;
  std::vector<float> floor;
  std::vector<int64_t> label;

  AnchorWorkspace(int64_t most_objects, float sigma, bool sigmoid)
      : block(most_objects),
        amplifier(sigma, sigmoid),
        place(most_objects),
        best(most_objects),
        floor(most_objects),
        label(most_objects) {}
};

// What Classify to Localize has to know of an image. Each object asks for a score, `floor` by its index, which takes an
// overlap of what is `needed` by its rank.
struct Amplification {
  Objects objects;
  const int64_t* labels;
  const FloatView<3>& logits;
  int64_t first_logit;
  const float *needed, *floor;
  float highest_floor;        // of the first round; who asks later scores less, or has lost the anchor by then
  const float* best_overlap;  // of each anchor
  bool first_round;

  int64_t place_of_logit(int64_t anchor, int64_t label) const {
    return first_logit + anchor * logits.stride[1] + label * logits.stride[2];
  }
  // Whether who has this score may have the anchor. From 1 on its best overlap is not known, since it was forced.
  bool may_win(int64_t anchor, float score) const {
    return score >= kWideRoom * best_overlap[anchor] || best_overlap[anchor] >= 1.0f;
  }
};

// An anchor that has what an object asks for, and may be its, is settled: all objects are heard that it may belong to.
// After the first round, in which objects also find their best anchors, those settled before stay as they are.
void amplify_block(const Block& block, const Amplification& image, AnchorWorkspace& workspace, const Standing& standing,
                   const PointSet& settled, BestPlaces& best, int64_t first_row);

}  // namespace mgassign::cpu
