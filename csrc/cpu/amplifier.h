// Classify to Localize, a batch of candidates at a time: amplified_centerness.cpp defines it and writes every
// score down, mutual_guidance_assign.cpp lets them compete.
#pragma once

#include "../math/boxes.h"
#include "../math/centerness.h"
#include "common.h"

namespace mgassign::cpu {

class Amplifier {
 public:
  Amplifier(double sigma, bool sigmoid, bool level_gate, int64_t widest_level)
      : sigma_(static_cast<float>(sigma)),
        sigmoid_(sigmoid),
        level_gate_(level_gate),
        capacity_(kBatch + widest_level),
        columns_(widest_level),
        point_(capacity_),
        object_(capacity_),
        ratio_x_(capacity_),
        ratio_y_(capacity_),
        score_(capacity_) {}

  // Queues the points of `rows` strictly inside the box (and, gated, on their level) as candidates of `object`.
  // What the network says of point j is logits.at(logit + j * logit_step). When enough have come together,
  // take(point, object, score) is called for each, in the order they were added.
  template <typename Take>
  void add(const Level& level, Span rows, const Box& box, int32_t object, const Floats& logits, int64_t logit,
           int64_t logit_step, const Take& take) {
    if (level_gate_ && !level.may_accept_inside(box.x2 - box.x1, box.y2 - box.y1)) return;
    const Span inside = strictly_between(level.y, level.height, box.y1, box.y2);
    rows = {std::max(rows.begin, inside.begin), std::min(rows.end, inside.end)};
    if (rows.begin >= rows.end) return;
    const Span columns = strictly_between(level.x, level.width, box.x1, box.x2);
    int64_t num_read = count_;
    const auto read = [&] {
      logits.read(logit, logit_step, point_.data() + num_read, count_ - num_read, score_.data() + num_read);
    };
    for (int64_t column = columns.begin; column < columns.end; ++column)
      columns_[column] = axis_distances(level.x.coordinate(column), box.x1, box.x2);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const AxisDistances vertical = axis_distances(level.y.coordinate(row), box.y1, box.y2);
      const int64_t first = level.first_point + row * level.width;
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        const AxisDistances horizontal = columns_[column];
        if (level_gate_ && !level.accepts(larger(horizontal.longest, vertical.longest))) continue;
        point_[count_] = static_cast<int32_t>(first + column);
        object_[count_] = object;
        ratio_x_[count_] = horizontal.ratio;
        ratio_y_[count_] = vertical.ratio;
        ++count_;
      }
      if (count_ < kBatch) continue;
      read();
      flush(take);
      num_read = 0;
    }
    read();
  }

  template <typename Take>
  void flush(const Take& take) {
    score_all();
    for (int64_t i = 0; i < count_; ++i) take(point_[i], object_[i], score_[i]);
    count_ = 0;
  }

 private:
  static constexpr int64_t kBatch = 256;

  // Turns the logits that wait in score_ into amplified centerness.
  void score_all();

  float sigma_;
  bool sigmoid_;  // logits are given
  bool level_gate_;
  int64_t capacity_;
  int64_t count_ = 0;
  std::vector<AxisDistances> columns_;
  std::vector<int32_t> point_, object_;
  std::vector<float> ratio_x_, ratio_y_, score_;
};

}  // namespace mgassign::cpu
