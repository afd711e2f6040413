// Mutual Guidance on anchors, fused: the original strategy, Localize to Classify and Classify to Localize in one call.
//
// Passes, each spread over the threads:
//   1. per block of anchors, which is read once for all images: whom does each anchor, and each predicted box, overlap
//      most? Each object's best ones;
//   2. per image: the original strategy, which gives N_g;
//   3. per image: each object's N_g best predicted boxes; per block of anchors: whose amplified overlap is the highest?
//   4. per image: each object's N_g best anchors by that.
#include <torch/csrc/stable/library.h>

#include <numeric>

#include "anchor_amplifier.h"

namespace mgassign::cpu {

namespace {

// What an object asks for that has found too few, before it takes all that there are.
constexpr float kNextFloor = 0.7f;

struct Settings {
  float sigma;
  bool sigmoid;
  float high, low, share;
};

// Leaves out the anchors that overlap their object by less than what is ignored: they are background.
void leave_out(const Block& block, float low, const Standing& standing, const PointSet& left) {
  for (int64_t from = 0; from < block.count; from += PointSet::kOfWord) {
    const int64_t first = block.first + from, count = std::min(PointSet::kOfWord, block.count - from);
    uint64_t& word = left.words[first / PointSet::kOfWord] = 0;
    for (int64_t i = 0; i < count; ++i) {
      int64_t& owner = standing.owner[first + i];
      owner = standing.score[first + i] >= low ? owner : kBackground;
      word |= uint64_t{owner >= 0} << i;
    }
  }
}

// Each object's best point is worth at least 1 to it; then contests are settled as everywhere.
void force_best(const Objects& objects, const ObjectBatch& batch, int64_t first_row,
                const std::vector<ScoredPoint>& best, const Standing& standing, const PointSet* points = nullptr) {
  for (int64_t k = 0; k < objects.count; ++k) {
    const ScoredPoint forced = best[first_row + objects.index[k]];
    if (!(forced.score > 0.0f)) continue;
    if (points) points->add(forced.point);
    const float score = larger(forced.score, 1.0f), held = standing.score[forced.point];
    int64_t& owner = standing.owner[forced.point];
    const bool tied = score == held && owner >= 0;
    const bool wins = score > held || (tied && smaller_object(objects.area[k], objects.index[k],
                                                              area_of(batch.box(first_row + owner)), owner));
    if (!wins) continue;
    owner = objects.index[k];
    standing.score[forced.point] = score;
  }
}

// Scratch space of one thread in passes 3 and 4.
struct Selector {
  TopPointSelector best;
  std::vector<int64_t> count;  // of each object

  Selector(int64_t num_points, int64_t most_objects) : best(num_points, most_objects), count(most_objects) {}
};

// What is found.
struct Guidance {
  int64_t *cls, *loc, *original, *counts;
  float* iou;
};

// A batch, and the passes over it.
class AnchorGuidance {
 public:
  AnchorGuidance(const Settings& settings, const Quota& quota, const Tensor& anchors, const Tensor& pred_boxes,
                 const Tensor& pred_logits, const ObjectBatch& batch, const int64_t* wanted, const Guidance& found)
      : settings_(settings),
        quota_(quota),
        num_images_(pred_boxes.size(0)),
        num_points_(anchors.size(0)),
        num_blocks_(blocks_for(num_points_)),
        work_(num_images_ * num_points_),
        threads_(threads_for(num_images_ * num_blocks_, 4 * work_)),
        anchors_(anchors),
        boxes_(pred_boxes),
        logits_(pred_logits),
        batch_(batch),
        wanted_(wanted),
        num_positives_(found.counts),
        tiles_(new_values<BoxTile>(tiles_for(num_points_))),
        scores_(new_values<float>(2 * work_)),
        sets_(new_values<uint64_t>(2 * num_images_ * PointSet::words_for(num_points_))),
        by_anchor_{found.original, scores_.get()},
        by_box_{found.cls, found.iou},
        by_class_{found.loc, scores_.get() + work_},
        anchor_blocks_(batch.num_objects()),
        box_blocks_(batch.num_objects()),
        amplified_(batch.num_objects()),
        best_anchor_(batch.num_objects()),
        best_box_(batch.num_objects()),
        best_class_(batch.num_objects()),
        between_(batch.num_objects()),
        needed_(batch.num_objects() + kLanes),
        floor_(batch.num_objects()),
        highest_floor_(num_images_),
        workspaces_(scratch_for<AnchorWorkspace>(threads_, batch.largest_image(), settings.sigma, settings.sigmoid)),
        selectors_(scratch_for<Selector>(threads_, num_points_, batch.largest_image())) {
    std::fill_n(num_positives_, batch.num_objects(), int64_t{0});
  }

  void assign() {
    for_each_unit(num_blocks_, threads_,
                  [&](int64_t unit, int64_t slot) { compete(last_first(unit, num_blocks_), workspaces_[slot].block); });
    const int64_t by_image = threads_for(num_images_, 2 * work_);
    for_each_unit(num_images_, by_image, [&](int64_t image, int64_t) { assign_original(image); });

    // In rounds, for those images that need more of Classify to Localize.
    std::vector<int64_t> images(num_images_);
    std::iota(images.begin(), images.end(), int64_t{0});
    for (bool first_round = true; !images.empty(); first_round = false) {
      const int64_t left = static_cast<int64_t>(images.size()), selections = first_round ? num_images_ : 0;
      for_each_unit(selections + left * num_blocks_, threads_, [&](int64_t unit, int64_t slot) {
        if (unit < selections) return select_for_classification(unit, slot);
        const int64_t of_rounds = unit - selections;
        amplify(images[of_rounds / num_blocks_], of_rounds % num_blocks_, first_round, slot);
      });
      std::vector<uint8_t> lacking(left);
      for_each_unit(left, std::min(threads_, threads_for(left, 2 * work_)),
                    [&](int64_t i, int64_t slot) { lacking[i] = ask_for_more(images[i], first_round, slot); });
      int64_t kept = 0;
      for (int64_t i = 0; i < left; ++i)
        if (lacking[i]) images[kept++] = images[i];
      images.resize(kept);
    }
    for_each_unit(num_images_, std::min(threads_, by_image),
                  [&](int64_t image, int64_t slot) { select_for_localization(image, slot); });
  }

 private:
  // Pass 1: competition by overlap among a block of anchors, and the boxes predicted from them.
  void compete(int64_t b, BlockWorkspace& workspace) {
    const Block block = anchors_of(b);
    load_tiles(block, anchors_, 0, anchors_.stride[0], anchors_.stride[1], tiles_.get() + b * kTilesOfBlock);
    for (int64_t image = 0; image < num_images_; ++image) {
      const int64_t first = image * num_points_, first_row = batch_.first(image);
      const Objects objects = batch_.ranked(image);
      const Standing anchor = by_anchor_.from(first), box = by_box_.from(first), amplified = by_class_.from(first);
      std::fill_n(amplified.owner + block.first, block.count, kBackground);
      std::fill_n(amplified.score + block.first, block.count, 0.0f);
      std::fill_n(settled(image).words + block.first / PointSet::kOfWord, PointSet::words_for(block.count), 0);
      compete_for_block(block, objects, workspace, anchor.owner, anchor.score, anchor_blocks_, first_row);
      leave_out(block, settings_.low, anchor, near_ones(image));
      compete_for_block(predictions_of(image, b, workspace), objects, workspace, box.owner, box.score, box_blocks_,
                        first_row);
    }
  }

  // Pass 2: the original strategy, and what Classify to Localize is to ask for at first.
  void assign_original(int64_t image) {
    const Objects objects = batch_.ranked(image);
    const int64_t first_row = batch_.first(image);
    const Standing standing = by_anchor_.from(image * num_points_);
    find_best(image, anchor_blocks_, [&](int64_t b) { return anchors_of(b); }, best_anchor_);
    const PointSet points = near_ones(image);
    force_best(objects, batch_, first_row, best_anchor_, standing, &points);
    int64_t* const positives = num_positives_ + first_row;
    points.for_each(num_points_, [&](int64_t j) {
      int64_t& owner = standing.owner[j];
      if (standing.score[j] >= settings_.high) {
        ++positives[owner];
      } else {
        ++between_[first_row + owner];
        owner = kIgnored;
      }
    });
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t g = objects.index[k], row = first_row + g, found = positives[g];
      positives[g] = quota_.of(wanted_ ? wanted_[row] : found);
      const float supposed = positives[g] <= std::max<int64_t>(found, 1) ? settings_.high  // one, as good, is forced
                             : positives[g] <= found + between_[row]     ? settings_.low
                                                                         : 0.0f;
      floor_[row] = smaller(supposed, best_anchor_[row].score);
      needed_[first_row + k] = least_overlap(floor_[row], settings_.sigma);
      highest_floor_[image] = larger(highest_floor_[image], floor_[row]);
    }
  }

  // Pass 3: Localize to Classify's selection.
  void select_for_classification(int64_t image, int64_t slot) {
    const Standing standing = by_box_.from(image * num_points_);
    const int64_t first_row = batch_.first(image), size = batch_.size(image);
    const auto boxes_of = [&](int64_t b) { return predictions_of(image, b, workspaces_[slot].block); };
    find_best(image, box_blocks_, boxes_of, best_box_);
    force_best(batch_.ranked(image), batch_, first_row, best_box_, standing);
    Selector& selector = selectors_[slot];
    for (int64_t g = 0; g < size; ++g) selector.count[g] = num_positives_[first_row + g] + between_[first_row + g];
    selector.best.run(standing.owner, standing.score, num_positives_ + first_row, size, selector.count.data());
    for (int64_t g = 0; g < size; ++g) {  // the forced ones' true overlap
      const ScoredPoint best = best_box_[first_row + g];
      if (best.score > 0.0f && standing.owner[best.point] == g) standing.score[best.point] = best.score;
    }
  }

  // Pass 3: competition by amplified overlap among a block of anchors.
  void amplify(int64_t image, int64_t b, bool first_round, int64_t slot) {
    const int64_t first = image * num_points_, first_row = batch_.first(image);
    const Amplification of_image{
        batch_.ranked(image),      batch_.labels(image),       logits_,
        image * logits_.stride[0], needed_.data() + first_row, floor_.data() + first_row,
        highest_floor_[image],     by_anchor_.score + first,   first_round,
    };
    amplify_block(anchors_of(b), of_image, workspaces_[slot], by_class_.from(first), settled(image), amplified_,
                  first_row);
  }

  // Whether an object of the image has fewer anchors than it may: then it asks for less, and the others for no more.
  bool ask_for_more(int64_t image, bool first_round, int64_t slot) {
    const Standing standing = by_class_.from(image * num_points_);
    const Objects objects = batch_.ranked(image);
    const int64_t first_row = batch_.first(image), size = batch_.size(image);
    for (int64_t g = 0; g < size; ++g) best_class_[first_row + g] = amplified_.of(first_row + g);
    const PointSet points = settled(image);
    force_best(objects, batch_, first_row, best_class_, standing, &points);
    std::vector<int64_t>& found = selectors_[slot].count;
    std::fill_n(found.begin(), size, int64_t{0});
    points.for_each(num_points_, [&](int64_t j) {
      found[standing.owner[j]] += standing.score[j] >= floor_[first_row + standing.owner[j]];
    });
    bool any = false;
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t g = objects.index[k], row = first_row + g;
      const bool lacks = found[g] < num_positives_[row] && floor_[row] > 0.0f;
      if (lacks) floor_[row] = first_round ? kNextFloor * floor_[row] : 0.0f;
      needed_[first_row + k] = lacks ? least_overlap(floor_[row], settings_.sigma) : kInfinity;
      any |= lacks;
    }
    return any;
  }

  // Pass 4: Classify to Localize's selection; what lies in regions.
  void select_for_localization(int64_t image, int64_t slot) {
    const int64_t first = image * num_points_;
    const Standing standing = by_class_.from(first);
    const PointSet points = settled(image);
    selectors_[slot].best.run(standing.owner, standing.score, num_positives_ + batch_.first(image), batch_.size(image),
                              nullptr, &points);
    const auto anchor = [&](int64_t j) { return tiles_[j / kTilePoints][static_cast<int>(j % kTilePoints)]; };
    for (const Standing& of : {by_anchor_, by_class_})
      ignore_boxes_in_regions(batch_, image, settings_.share, num_points_, of.owner + first, anchor);
    ignore_boxes_in_regions(batch_, image, settings_.share, num_points_, by_box_.owner + first, [&](int64_t j) {
      return boxes_.box_at(image * boxes_.stride[0] + j * boxes_.stride[1], boxes_.stride[2]);
    });
  }

  // Each object's best one, by rows, of the blocks in which it is.
  template <typename BlockOf>
  void find_best(int64_t image, const BestPlaces& blocks, const BlockOf& block_of, std::vector<ScoredPoint>& best) {
    const Objects objects = batch_.ranked(image);
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t row = batch_.first(image) + objects.index[k];
      ScoredPoint& found = best[row] = blocks.of(row);
      if (!(found.score > 0.0f)) continue;
      const int64_t j = first_with(block_of(found.point), objects[k], found.score);
      found = j >= 0 ? ScoredPoint{found.score, static_cast<int32_t>(j)} : ScoredPoint{0.0f, -1};
    }
  }

  Block anchors_of(int64_t b) const { return block_at(b, num_points_, tiles_.get() + b * kTilesOfBlock); }
  Block predictions_of(int64_t image, int64_t b, BlockWorkspace& workspace) const {
    const Block block = block_at(b, num_points_, workspace.tiles.data());
    load_tiles(block, boxes_, image * boxes_.stride[0], boxes_.stride[1], boxes_.stride[2], workspace.tiles.data());
    return block;
  }
  // Of an image: the anchors that overlap an object by what is ignored, or more; those that Classify to Localize
  // settled.
  PointSet near_ones(int64_t image) const { return set(2 * image); }
  PointSet settled(int64_t image) const { return set(2 * image + 1); }
  PointSet set(int64_t i) const { return PointSet{sets_.get() + i * PointSet::words_for(num_points_)}; }

  const Settings settings_;
  const Quota quota_;
  const int64_t num_images_, num_points_, num_blocks_, work_, threads_;
  const FloatView<2> anchors_;
  const FloatView<3> boxes_, logits_;
  const ObjectBatch& batch_;
  const int64_t* const wanted_;
  int64_t* const num_positives_;            // of each object
  const std::unique_ptr<BoxTile[]> tiles_;  // the anchors
  const std::unique_ptr<float[]> scores_;
  const std::unique_ptr<uint64_t[]> sets_;
  const Standing by_anchor_, by_box_, by_class_;
  BestPlaces anchor_blocks_, box_blocks_, amplified_;
  // By rows: each object's best points; how many more points than N_g are neither the object's nor background; see
  // Amplification.
  std::vector<ScoredPoint> best_anchor_, best_box_, best_class_;
  std::vector<int64_t> between_;
  std::vector<float> needed_, floor_, highest_floor_;
  std::vector<AnchorWorkspace> workspaces_;
  std::vector<Selector> selectors_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> anchor_mutual_guidance_assign_cpu(
    const Tensor& anchors, const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes,
    const Tensor& gt_labels, MGASSIGN_OBJECTS_PARAMETERS, std::optional<Tensor> wanted, double sigma, double high,
    double low, int64_t min_points, int64_t max_points, double ignore_share, int64_t activation) {
  check_anchors(anchors, gt_boxes);
  const int64_t num_points = anchors.size(0);
  const Quota quota(min_points, max_points, num_points);
  check_sigma(sigma);
  check_thresholds(high, low);
  check_ignore_share(ignore_share);
  check_activation(activation);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts);
  check_predictions(pred_boxes, pred_logits, gt_boxes, gt_labels, wanted, num_images, num_points);
  const Settings settings{static_cast<float>(sigma), activation == 1, static_cast<float>(high), static_cast<float>(low),
                          static_cast<float>(ignore_share)};

  auto [cls, loc, original, counts, iou] = new_guidance(gt_boxes, num_images, num_points, gt_labels.numel());
  if (nothing_to_assign(cls, gt_boxes, gt_offsets, gt_counts)) return {cls, loc, original, counts, iou};

  ObjectBatch batch(gt_boxes, &gt_labels, gt_offsets, gt_counts);
  batch.check_labels(pred_logits.size(2));
  for (int64_t image = 0; image < num_images; ++image) batch.rank(image);
  AnchorGuidance(
      settings, quota, anchors, pred_boxes, pred_logits, batch, wanted ? wanted->const_data_ptr<int64_t>() : nullptr,
      {cls.mutable_data_ptr<int64_t>(), loc.mutable_data_ptr<int64_t>(), original.mutable_data_ptr<int64_t>(),
       counts.mutable_data_ptr<int64_t>(), iou.mutable_data_ptr<float>()})
      .assign();
  return {cls, loc, original, counts, iou};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("anchor_mutual_guidance_assign", MGASSIGN_OPERATOR(anchor_mutual_guidance_assign_cpu));
}
