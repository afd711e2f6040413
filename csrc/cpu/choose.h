// Choose, then contest: the skeleton of task-aligned assignment and its kin.
//
//   1. Each object chooses its best points among those it may look at (Chooser). Points inside a window are enumerated
//      on the grid, not searched. Vector code asks first which predictions overlap the object enough to matter;
//      only those are scored.
//   2. A point that several objects chose goes to one, and what an object holds is told (settle).
//
// An assigner says which points an object may look at, what they score, how much overlap a score takes, how many points
// an object chooses, and who gets a contested point.
#pragma once

#include "../rules.h"
#include "steps.h"

namespace mgassign::cpu {

// The predicted boxes of a batch, an array for each side. Those that are no boxes are empty: they overlap nothing.
class Predictions {
 public:
  // Where `pool` [B, P] is given, only those of its points count as boxes.
  Predictions(const Tensor& boxes, bool with_runs, const uint8_t* pool = nullptr);

  // Those of one image. `around` are the boxes around each run of kLanes points, where they are wanted.
  struct OfImage : Boxes {
    Boxes around;
  };
  OfImage of(int64_t image) const;

 private:
  int64_t num_points_, runs_;
  // Vector code reads a little beyond the last point, where there is zero.
  std::unique_ptr<float[]> x1_, y1_, x2_, y2_, area_;
  BoxArrays around_;
};

// Some rows of some columns of points; `step` points from one row to the next.
struct Band {
  int64_t first, rows, columns, step;
};

// Finds the points of a band whose predictions overlap the box by more than `least`, or all of them where it is below
// 0. `found` has room for rows * (columns + kLanes) points; a little beyond the last box is read.
int64_t overlapping(const Boxes& predictions, const Band& band, const Box& box, float least, int32_t* found);
// The same, of the points of some runs. `found` has room for kLanes points more.
int64_t overlapping(const Boxes& predictions, const int32_t* runs, int64_t num_runs, const Box& box, float least,
                    int32_t* found);
// Finds the runs some of whose points may overlap the box by more than `least`, which is not below 0: at least so much
// of the box has to be in common with what is around the run. `found` has room for one more than there are.
int64_t overlapping_runs(const Boxes& around, const Box& box, float least, int32_t* found);

// The best of the points offered to an object, best first.
class BestPoints {
 public:
  // `count` of at most `capacity` choices are there already; scores have to be above `floor`.
  BestPoints(Choice* choices, int32_t* count, int64_t capacity, float floor)
      : choices_(choices), count_(count), capacity_(static_cast<int32_t>(capacity)), floor_(floor) {}

  void clear() { *count_ = 0; }

  // Who scores less is not taken any more.
  float bar() const { return *count_ < capacity_ || capacity_ == 0 ? floor_ : choices_[capacity_ - 1].score; }

  void offer(const Choice& choice) {
    if (!(choice.score > floor_) || capacity_ == 0) return;
    if (*count_ == capacity_ && !ranks_before(choice, choices_[capacity_ - 1])) return;
    int32_t place = *count_ < capacity_ ? (*count_)++ : capacity_ - 1;
    for (; place > 0 && ranks_before(choice, choices_[place - 1]); --place) choices_[place] = choices_[place - 1];
    choices_[place] = choice;
  }

 private:
  Choice* choices_;
  int32_t* count_;
  int32_t capacity_;
  float floor_;
};

// What the objects of a batch chose: room for as many as `capacity` each.
class ChoiceLists {
 public:
  ChoiceLists(int64_t num_objects, int64_t capacity)
      : capacity_(capacity),
        choices_(new_values<Choice>(num_objects * capacity)),
        count_(new_values<int32_t>(num_objects)) {}

  int64_t capacity() const { return capacity_; }
  void clear(int64_t object) { count_[object] = 0; }
  // The list of an object, which holds at most `most` choices, with scores above `floor`.
  BestPoints of(int64_t object, int64_t most, float floor) {
    return {choices_.get() + object * capacity_, count_.get() + object, std::min(most, capacity_), floor};
  }
  template <typename Condition>
  void keep_if(int64_t object, const Condition& condition) {
    Choice* const own = choices_.get() + object * capacity_;
    count_[object] = static_cast<int32_t>(
        std::remove_if(own, own + count_[object], [&](const Choice& choice) { return !condition(choice); }) - own);
  }
  template <typename Each>
  void for_each(int64_t object, const Each& each) const {
    for (int32_t i = 0; i < count_[object]; ++i) each(choices_[object * capacity_ + i]);
  }

 private:
  int64_t capacity_;
  std::unique_ptr<Choice[]> choices_;
  std::unique_ptr<int32_t[]> count_;
};

// Shows points to objects. Holds the scratch space of one thread.
//
// A scorer knows one object:
//   Predictions::OfImage predictions; Box box; float least        whom predictions have to overlap, and by how much
//   void score(const int32_t* points, int64_t count, BestPoints& best)
//                                        offers them with their scores; may raise least to what the bar asks for then
class Chooser {
 public:
  explicit Chooser(const Grid& grid) : grid_(grid), found_(most_together(grid)), runs_(grid.num_points / kLanes + 2) {}

  // No scorer is offered more points at once.
  static int64_t most_together(const Grid& grid) { return kEnough + kBandPoints + grid.widest_level() + kLanes; }

  // The points inside a window, by a margin; window_of(level) tells it.
  template <typename WindowOf, typename Scorer>
  void show_inside(const WindowOf& window_of, float margin, Scorer& scorer, BestPoints& best) {
    for (const Level& level : grid_.levels) {
      const Box window = window_of(level);
      const Span columns = strictly_between(level.x, level.width, window.x1, window.x2, margin);
      const Span rows = strictly_between(level.y, level.height, window.y1, window.y2, margin);
      const int64_t across = columns.end - columns.begin;
      if (across == 0) continue;
      // Some rows at a time, from everywhere in the window: what the first ones score spares scoring most others.
      const int64_t tall = rows.end - rows.begin, bands = (tall * (across + kLanes) + kBandPoints - 1) / kBandPoints;
      const int64_t first = level.first_point + rows.begin * level.width + columns.begin;
      for (int64_t i = 0; i < std::min(bands, tall); ++i)
        show({first + i * level.width, (tall - i + bands - 1) / bands, across, bands * level.width}, scorer, best);
    }
    show_found(scorer, best);
  }

  // All points whose predictions overlap the object.
  template <typename Scorer>
  void show_overlapping(Scorer& scorer, BestPoints& best) {
    constexpr int64_t kTogether = kBandPoints / kLanes;
    const int64_t count = overlapping_runs(scorer.predictions.around, scorer.box, scorer.least, runs_.data());
    for (int64_t i = 0; i < count; i += kTogether) {
      num_found_ += overlapping(scorer.predictions, runs_.data() + i, std::min(count - i, kTogether), scorer.box,
                                scorer.least, found_.data() + num_found_);
      if (num_found_ >= kEnough) show_found(scorer, best);
    }
    show_found(scorer, best);
  }

 private:
  // How many points are looked at, and how many of them are found, before they are offered.
  static constexpr int64_t kBandPoints = 256, kEnough = 64;

  template <typename Scorer>
  void show(const Band& band, Scorer& scorer, BestPoints& best) {
    num_found_ += overlapping(scorer.predictions, band, scorer.box, scorer.least, found_.data() + num_found_);
    if (num_found_ >= kEnough) show_found(scorer, best);
  }
  template <typename Scorer>
  void show_found(Scorer& scorer, BestPoints& best) {
    if (num_found_ > 0) scorer.score(found_.data(), num_found_, best);
    num_found_ = 0;
  }

  const Grid& grid_;
  std::vector<int32_t> found_, runs_;
  int64_t num_found_ = 0;
};

// How many threads choose. An object looks at about a sixteenth of an image's points.
inline int64_t threads_to_choose(const ObjectBatch& batch, int64_t num_points) {
  return threads_for(batch.num_objects(), num_points * batch.num_objects() / 16);
}

// Who holds the points of one image, with what score and claim; [P] each.
struct Holdings {
  int64_t* owner;
  float *score, *claim;
};

// The points of an image that objects chose, each once, and those among them that several chose. There must be room for
// all choices: threads work on them, which must not throw.
struct Chosen {
  std::vector<int32_t> points, contested;

  void reserve(int64_t choices) {
    points.reserve(choices);
    contested.reserve(choices);
  }
};

// Hands out what objects [first, first + count) of a batch, an image's, have chosen. A contested point goes to the
// highest claim; equal claims: to the lower object. Owners must be kBackground before.
void settle(const ChoiceLists& lists, int64_t first, int64_t count, const Holdings& held, Chosen& chosen);

// The same of a whole batch, image by image. held_of(image) tells where an image's points are held: their owners and
// claims are cleared here. Scores are not; an assigner may have one array for both.
template <typename HeldOf>
std::vector<Chosen> hand_out(const ChoiceLists& lists, const ObjectBatch& batch, int64_t num_points,
                             const HeldOf& held_of) {
  const int64_t num_images = batch.num_images();
  std::vector<Chosen> chosen(num_images);
  for (int64_t image = 0; image < num_images; ++image)
    chosen[image].reserve(batch.size(image) * std::min(lists.capacity(), num_points));
  for_each_unit(num_images, threads_for(num_images, num_images * num_points), [&](int64_t image, int64_t) {
    const Holdings held = held_of(image);
    std::fill_n(held.owner, num_points, kBackground);
    std::fill_n(held.claim, num_points, 0.0f);
    settle(lists, batch.first(image), batch.size(image), held, chosen[image]);
  });
  return chosen;
}

// Calls contest(image, begin, end, slot) with the contested points of all images, some at a time, spread over threads.
template <typename Contest>
void for_each_contest(const std::vector<Chosen>& chosen, int64_t threads, const Contest& contest) {
  constexpr size_t kTogether = 64;
  struct Part {
    int64_t image;
    size_t begin, end;
  };
  std::vector<Part> parts;
  for (size_t image = 0; image < chosen.size(); ++image)
    for (size_t begin = 0, count = chosen[image].contested.size(); begin < count; begin += kTogether)
      parts.push_back({static_cast<int64_t>(image), begin, std::min(begin + kTogether, count)});
  for_each_unit(static_cast<int64_t>(parts.size()), threads, [&](int64_t unit, int64_t slot) {
    const Part& part = parts[unit];
    const int32_t* const points = chosen[part.image].contested.data();
    contest(part.image, points + part.begin, points + part.end, slot);
  });
}

}  // namespace mgassign::cpu
