// The steps that operators share. fcos_assign.cpp and topk_per_object.cpp define what
// mutual_guidance_assign.cpp uses too, so composed and fused results cannot drift apart.
#pragma once

#include <memory>

#include "../math/order.h"
#include "objects.h"

namespace mgassign::cpu {

// FCOS's own strategy for one image. Writes owner [P] and num_points (one per object of the image).
void assign_original(const Grid& grid, const Objects& objects, int64_t num_objects, double center_radius,
                     int64_t* owner, int64_t* num_points);

// Whom each point stands for and by what score; of one image or of all.
struct Standing {
  int64_t* owner;
  float* score;

  Standing from(int64_t point) const { return {owner + point, score + point}; }
};

// Some points of an image, a bit each.
struct PointSet {
  static constexpr int64_t kOfWord = 64;
  uint64_t* words;

  static int64_t words_for(int64_t num_points) { return (num_points + kOfWord - 1) / kOfWord; }
  void add(int64_t point) const { words[point / kOfWord] |= uint64_t{1} << point % kOfWord; }
  // Calls each(point) in their order.
  template <typename Each>
  void for_each(int64_t num_points, const Each& each) const {
    for (int64_t w = 0; w < words_for(num_points); ++w)
      for (uint64_t left = words[w]; left != 0; left &= left - 1) each(w * kOfWord + __builtin_ctzll(left));
  }
};

// For each object, keeps its k best points among those standing for it; the others' owner becomes -1, their score 0.
// Where `considered`, not below k, is given, the best `considered` of them are to be ignored instead, but for the k.
// Where `standing` is given, no other points stand for an object. Holds the scratch space for one image at a time.
class TopPointSelector {
 public:
  TopPointSelector(int64_t num_points, int64_t max_objects);
  void run(int64_t* owner, float* score, const int64_t* k, int64_t num_objects, const int64_t* considered = nullptr,
           const PointSet* standing = nullptr);

 private:
  struct Segment {     // of the lists: an object's
    int64_t start;     // there is room for twice as many points as it may keep
    int32_t capacity;  // how many that are
    int32_t filled;    // how many are there
  };
  void prepare(const int64_t* owner, const float* score, const int64_t* considered, int64_t num_objects,
               const PointSet* standing);

  int64_t num_points_;
  std::vector<float> threshold_;  // score a further point has to exceed; entry 0 for points of no object
  std::vector<Segment> segments_;
  std::vector<int32_t> num_scoring_;      // points of each object by classes of scores
  std::unique_ptr<ScoredPoint[]> lists_;  // room for every point twice, but only what is used is ever touched
};

}  // namespace mgassign::cpu
