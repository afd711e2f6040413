// Mutual Guidance on anchors, fused: the original strategy, Localize to Classify and Classify to Localize in one call.
//
// Passes, each spread over the threads:
//   1. per block of anchors: whom does each anchor, and each predicted box, overlap most? Each object's best ones;
//   2. per image: the original strategy, which gives N_g;
//   3. per block of anchors: whose amplified overlap is the highest?
//   4. per image and task: the best are forced, each object's N_g best points are kept.
//
// Pass 3 reads logits, and takes a logarithm and an exponential for each pair. Amplification lifts an overlap s to at
// most s ^ ((sigma - 1) / sigma) and never lowers it. So most pairs cannot win their anchor, and most anchors cannot be
// among an object's N_g best: it is first supposed that these have at least the overlap that made N_g. Where an object
// finds fewer (others, amplified more, took its anchors), its image is gone through once more without that.
#include <torch/csrc/stable/library.h>

#include "../math/centerness.h"
#include "anchors.h"

namespace mgassign::cpu {

namespace {

constexpr float kLeast = std::numeric_limits<float>::denorm_min();  // above 0

struct Settings {
  float sigma;
  bool sigmoid;
  float positive, ignore, share;
};

// Whom each point stands for and by what score; of one image or of all.
struct Standing {
  int64_t* owner;
  float* score;

  Standing from(int64_t point) const { return {owner + point, score + point}; }
};

// An overlap so small that nothing beneath it is amplified to `score`; with room for roundings.
float least_overlap(float score, float sigma) {
  return score > 0.0f ? 0.99f * exp_f32(log_f32(score) * (sigma / (sigma - 1.0f))) : 0.0f;
}

MGASSIGN_VECTOR void least_overlaps(const float* best, int64_t count, float sigma, float* least) {
  // From 1 on an anchor is one that was forced, whose true overlap is not known here.
  for (int64_t i = 0; i < count; ++i) least[i] = best[i] < 1.0f ? least_overlap(best[i], sigma) : 0.0f;
}

MGASSIGN_VECTOR void amplify_all(float* score, const float* logit, int64_t count, bool sigmoid, float sigma) {
  if (sigmoid)
    for (int64_t i = 0; i < count; ++i) score[i] = amplify(score[i], sigmoid_f32(logit[i]), sigma);
  else
    for (int64_t i = 0; i < count; ++i) score[i] = amplify(score[i], probability_f32(logit[i]), sigma);
}

// Which boxes of a tile overlap an object by what is needed of each, or by `enough`, all above 0: writes them to found,
// in their order, with room for all and one more; how many.
MGASSIGN_VECTOR int64_t reaching(const BoxTile& tile, const Object object, const float* needed, float enough,
                                 float* overlap, int32_t* found) {
  float iou[kTilePoints];  // an array of its own: then nothing that is written may be what is read
  int32_t hit[kTilePoints], any = 0;
  for (int i = 0; i < kTilePoints; ++i) iou[i] = iou_with(tile, i, object);
  for (int i = 0; i < kTilePoints; ++i) {
    // The lesser of the two needs, and above 0: written so that it is vector code.
    const float least = smaller(needed[i], enough);
    hit[i] = iou[i] >= least ? 1 : 0;
  }
  for (int i = 0; i < kTilePoints; ++i) any |= hit[i];
  if (!any) return 0;
  std::copy_n(iou, kTilePoints, overlap);
  int64_t count = 0;
  for (int i = 0; i < kTilePoints; ++i) {
    found[count] = i;
    count += hit[i];
  }
  return count;
}

// Pairs of point and object whose amplified overlap is wanted, until enough have come together.
class Amplifier {
 public:
  explicit Amplifier(const Settings& settings) : settings_(settings) {}

  bool is_full() const { return count_ + kTilePoints > kMost; }
  void add(int64_t point, int32_t object, float overlap) {
    point_[count_] = static_cast<int32_t>(point);
    object_[count_] = object;
    score_[count_++] = overlap;
  }
  // logit_of(point, object) reads what the network says: all together, since each is a wait for memory. Then calls
  // take(point, object, score) for each pair, in the order they came in.
  template <typename LogitOf, typename Take>
  void flush(const LogitOf& logit_of, const Take& take) {
    float logit[kMost];
    for (int64_t i = 0; i < count_; ++i) logit[i] = logit_of(point_[i], object_[i]);
    amplify_all(score_, logit, count_, settings_.sigmoid, settings_.sigma);
    for (int64_t i = 0; i < count_; ++i) take(point_[i], object_[i], score_[i]);
    count_ = 0;
  }

 private:
  static constexpr int64_t kMost = 512;

  Settings settings_;
  int64_t count_ = 0;
  int32_t point_[kMost], object_[kMost];
  float score_[kMost];
};

// Scratch space of one thread in passes 1 to 3.
struct Workspace {
  BlockWorkspace block;
  Amplifier amplifier;
  std::vector<ScoredPoint> best;  // of each near object

  Workspace(int64_t most_objects, const Settings& settings)
      : block(most_objects), amplifier(settings), best(most_objects) {}
};

// Classify to Localize for a block of anchors: `needed` is what each object asks of an overlap.
template <typename Element>
void amplify_block(const Block& block, const Objects& objects, const float* needed, const Element* logits,
                   int64_t point_step, int64_t class_step, const int64_t* labels, const float* best_overlap,
                   float sigma, Workspace& workspace, const Standing& standing, BestPlaces& best, int64_t first_row) {
  BlockWorkspace& scratch = workspace.block;
  int32_t* const found = scratch.found.data();
  std::fill_n(standing.owner + block.first, block.count, kBackground);
  std::fill_n(standing.score + block.first, block.count, 0.0f);
  const Objects near = scratch.take_near(objects, touching(block.extent().bounds, objects, found), needed);
  std::fill_n(workspace.best.begin(), near.count, ScoredPoint{0.0f, -1});
  const auto logit_of = [&](int64_t j, int32_t k) {
    return static_cast<float>(logits[j * point_step + labels[near.index[k]] * class_step]);
  };
  const auto take = [&](int64_t j, int32_t k, float score) {
    // Objects come in their order and points in theirs, so an equal score never displaces.
    if (score > standing.score[j]) {
      standing.score[j] = score;
      standing.owner[j] = near.index[k];
    }
    if (score > workspace.best[k].score) workspace.best[k] = {score, static_cast<int32_t>(j)};
  };

  block.for_each_tile([&](const BoxTile& tile, int64_t first, int64_t count) {
    // An anchor matters if it reaches what one object needs; then all count that may win it.
    const int64_t num_reaching = within_reach(tile.extent, near, scratch.needed.data(), found);
    float overlap[kTilePoints], needed_at[kTilePoints];
    int32_t lanes[kTilePoints + 1];
    bool matters[kTilePoints] = {}, any = false;
    std::fill_n(needed_at, kTilePoints, kInfinity);
    for (int64_t n = 0; n < num_reaching; ++n) {
      const int64_t hits = reaching(tile, near[found[n]], needed_at, scratch.needed[found[n]], overlap, lanes);
      for (int64_t i = 0; i < hits; ++i) matters[lanes[i]] = any = true;
    }
    if (!any) return;
    least_overlaps(best_overlap + first, count, sigma, needed_at);
    for (int64_t i = 0; i < kTilePoints; ++i)
      needed_at[i] = i < count && matters[i] ? larger(needed_at[i], kLeast) : kInfinity;
    const int64_t num_touching = touching(tile.extent.bounds, near, found);
    for (int64_t n = 0; n < num_touching; ++n) {
      const int32_t k = found[n];
      const int64_t hits = reaching(tile, near[k], needed_at, scratch.needed[k], overlap, lanes);
      if (workspace.amplifier.is_full()) workspace.amplifier.flush(logit_of, take);
      for (int64_t i = 0; i < hits; ++i) workspace.amplifier.add(first + lanes[i], k, overlap[lanes[i]]);
    }
  });
  workspace.amplifier.flush(logit_of, take);
  for (int64_t k = 0; k < near.count; ++k)
    if (workspace.best[k].score > 0.0f) best.raise(first_row + near.index[k], workspace.best[k]);
}

// Each object's best point is worth at least 1 to it; then contests are settled as everywhere.
void force_best(const Objects& objects, const ObjectBatch& batch, int64_t first_row,
                const std::vector<ScoredPoint>& best, const Standing& standing) {
  for (int64_t k = 0; k < objects.count; ++k) {
    const ScoredPoint forced = best[first_row + objects.index[k]];
    if (!(forced.score > 0.0f)) continue;
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

// Scratch space of one thread in pass 4.
struct Selector {
  TopPointSelector best;
  std::unique_ptr<int64_t[]> owner;  // of each point
  std::vector<int64_t> count;        // of each object

  Selector(int64_t num_points, int64_t most_objects)
      : best(num_points, most_objects), owner(new_values<int64_t>(num_points)), count(most_objects) {}
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> anchor_mutual_guidance_assign_cpu(
    const Tensor& anchors, const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes,
    const Tensor& gt_labels, MGASSIGN_OBJECTS_PARAMETERS, std::optional<Tensor> wanted, double sigma, double positive,
    double ignore, int64_t min_points, int64_t max_points, double ignore_share, int64_t activation) {
  check_anchors(anchors, gt_boxes);
  const int64_t num_points = anchors.size(0);
  const Quota quota(min_points, max_points, num_points);
  check_sigma(sigma);
  check_thresholds(positive, ignore, "positive", "ignore");
  check_ignore_share(ignore_share);
  check_activation(activation);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts);
  check_predictions(pred_boxes, pred_logits, gt_boxes, gt_labels, num_images, num_points);
  if (wanted) check_property(*wanted, gt_boxes, "wanted");
  const Settings settings{static_cast<float>(sigma), activation == 1, static_cast<float>(positive),
                          static_cast<float>(ignore), static_cast<float>(ignore_share)};

  auto [cls, loc, original, counts, iou] = new_guidance(gt_boxes, num_images, num_points, gt_labels.numel());
  if (cls.numel() == 0 && counts.numel() == 0) return {cls, loc, original, counts, iou};
  const int64_t* const labels = gt_labels.const_data_ptr<int64_t>();
  ObjectBatch batch(gt_boxes.const_data_ptr<float>(), image_offsets(gt_boxes, gt_offsets, gt_counts), labels);
  check_labels(batch, labels, pred_logits.size(2));
  const int64_t num_objects = batch.num_objects();
  int64_t* const num_positives = counts.mutable_data_ptr<int64_t>();
  std::fill_n(num_positives, num_objects, int64_t{0});
  for (int64_t image = 0; image < num_images; ++image) batch.rank(image);

  const int64_t num_blocks = blocks_for(num_points), work = num_images * num_points;
  const int64_t threads = threads_for(num_images * num_blocks, 4 * work);
  const std::vector<BoxTile> tiles = read_anchors(anchors, threads);
  auto workspaces = scratch_for<Workspace>(threads, batch.largest_image(), settings);
  const std::unique_ptr<float[]> scores = new_values<float>(2 * work);
  const Standing by_anchor{original.mutable_data_ptr<int64_t>(), scores.get()};
  const Standing by_box{cls.mutable_data_ptr<int64_t>(), iou.mutable_data_ptr<float>()};
  const Standing by_class{loc.mutable_data_ptr<int64_t>(), scores.get() + work};
  const auto anchors_of = [&](int64_t b) { return block_at(b, num_points, tiles.data() + b * kTilesOfBlock); };
  const auto predictions_of = [&](int64_t image, int64_t b, BlockWorkspace& workspace) {
    const Block block = block_at(b, num_points, workspace.tiles.data());
    with_strided<3>(pred_boxes, [&](const auto& boxes) {
      load_tiles(block, boxes.data + image * boxes.stride[0], boxes.stride[1], boxes.stride[2], workspace.tiles.data());
    });
    return block;
  };

  // Pass 1: competition by overlap.
  BestPlaces anchor_blocks(num_objects), box_blocks(num_objects);
  for_each_unit(num_images * num_blocks, threads, [&](int64_t unit, int64_t slot) {
    const int64_t image = unit / num_blocks, b = unit % num_blocks, first = image * num_points;
    const Objects objects = batch.ranked(image);
    BlockWorkspace& workspace = workspaces[slot].block;
    const Standing anchor = by_anchor.from(first), box = by_box.from(first);
    compete_for_block(anchors_of(b), objects, workspace, anchor.owner, anchor.score, anchor_blocks, batch.first(image));
    compete_for_block(predictions_of(image, b, workspace), objects, workspace, box.owner, box.score, box_blocks,
                      batch.first(image));
  });

  // Pass 2: the best anchor and the best predicted box of each object; the original strategy.
  std::vector<ScoredPoint> best_anchor(num_objects), best_box(num_objects), best_class(num_objects);
  std::vector<int64_t> between(num_objects);  // how many more points than N_g are neither the object's nor background
  std::vector<float> needed(num_objects);     // in the order of batch.ranked(): the overlap Classify to Localize asks
  std::vector<float> floor(num_objects);      // what that may be amplified to
  for_each_unit(num_images, threads_for(num_images, 2 * work), [&](int64_t image, int64_t slot) {
    const Objects objects = batch.ranked(image);
    const int64_t first_row = batch.first(image);
    const Standing standing = by_anchor.from(image * num_points);
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t row = first_row + objects.index[k];
      const auto find = [&](const BestPlaces& blocks, const auto& block_of) {
        const ScoredPoint best = blocks.of(row);
        if (!(best.score > 0.0f)) return best;
        return ScoredPoint{best.score, static_cast<int32_t>(first_with(block_of(best.point), objects[k], best.score))};
      };
      best_anchor[row] = find(anchor_blocks, anchors_of);
      best_box[row] = find(box_blocks, [&](int64_t b) { return predictions_of(image, b, workspaces[slot].block); });
    }
    force_best(objects, batch, first_row, best_anchor, standing);
    int64_t* const positives = num_positives + first_row;
    for (int64_t j = 0; j < num_points; ++j) {
      int64_t& owner = standing.owner[j];
      if (owner < 0) continue;
      if (standing.score[j] >= settings.positive) {
        ++positives[owner];
      } else if (standing.score[j] >= settings.ignore) {
        ++between[first_row + owner];
        owner = kIgnored;
      } else {
        owner = kBackground;
      }
    }
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t g = objects.index[k], row = first_row + g, found = positives[g];
      positives[g] = quota.of(wanted ? wanted->const_data_ptr<int64_t>()[row] : found);
      const float supposed = positives[g] <= found                  ? settings.positive
                             : positives[g] <= found + between[row] ? settings.ignore
                                                                    : 0.0f;
      floor[row] = smaller(supposed, best_anchor[row].score);
      needed[first_row + k] = larger(least_overlap(floor[row], settings.sigma), kLeast);
    }
  });

  // Pass 3: Classify to Localize.
  BestPlaces amplified(num_objects);
  const auto amplify_image_block = [&](int64_t image, int64_t b, int64_t slot) {
    const int64_t first = image * num_points;
    with_strided<3>(pred_logits, [&](const auto& logits) {
      amplify_block(anchors_of(b), batch.ranked(image), needed.data() + batch.first(image),
                    logits.data + image * logits.stride[0], logits.stride[1], logits.stride[2],
                    labels + batch.first(image), by_anchor.score + first, settings.sigma, workspaces[slot],
                    by_class.from(first), amplified, batch.first(image));
    });
  };
  for_each_unit(num_images * num_blocks, threads,
                [&](int64_t unit, int64_t slot) { amplify_image_block(unit / num_blocks, unit % num_blocks, slot); });

  // Pass 4: selection, and what is left over.
  const int64_t selectors_needed = std::min(threads, threads_for(2 * num_images, 2 * work));
  auto selectors = scratch_for<Selector>(selectors_needed, num_points, batch.largest_image());
  const auto select_for_classification = [&](int64_t image, int64_t slot) {
    const Standing standing = by_box.from(image * num_points);
    const int64_t first_row = batch.first(image), size = batch.size(image);
    force_best(batch.ranked(image), batch, first_row, best_box, standing);
    Selector& selector = selectors[slot];
    for (int64_t g = 0; g < size; ++g) selector.count[g] = num_positives[first_row + g] + between[first_row + g];
    selector.best.run(standing.owner, standing.score, selector.count.data(), size);
    std::copy_n(standing.owner, num_points, selector.owner.get());
    selector.best.run(standing.owner, standing.score, num_positives + first_row, size);
    for (int64_t j = 0; j < num_points; ++j) {
      if (standing.owner[j] >= 0) continue;
      standing.owner[j] = selector.owner[j] >= 0 ? kIgnored : kBackground;
      standing.score[j] = 0.0f;
    }
    for (int64_t g = 0; g < size; ++g) {  // the forced ones' true overlap
      const ScoredPoint best = best_box[first_row + g];
      if (best.score > 0.0f && standing.owner[best.point] == g) standing.score[best.point] = best.score;
    }
  };
  // Keeps the best; whether every object has as many as it may, and none that it was not supposed to have.
  const auto select_for_localization = [&](int64_t image, int64_t slot) {
    const Standing standing = by_class.from(image * num_points);
    const Objects objects = batch.ranked(image);
    const int64_t first_row = batch.first(image), size = batch.size(image);
    for (int64_t g = 0; g < size; ++g) best_class[first_row + g] = amplified.of(first_row + g);
    force_best(objects, batch, first_row, best_class, standing);
    selectors[slot].best.run(standing.owner, standing.score, num_positives + first_row, size);
    std::vector<int64_t>& kept = selectors[slot].count;
    std::fill_n(kept.begin(), size, int64_t{0});
    for (int64_t j = 0; j < num_points; ++j)
      if (standing.owner[j] >= 0) kept[standing.owner[j]] += standing.score[j] >= floor[first_row + standing.owner[j]];
    bool complete = true;
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t g = objects.index[k];
      if (kept[g] >= num_positives[first_row + g] || floor[first_row + g] == 0.0f) continue;
      floor[first_row + g] = 0.0f;
      needed[first_row + k] = kLeast;
      complete = false;
    }
    return complete;
  };
  for_each_unit(2 * num_images, selectors_needed, [&](int64_t unit, int64_t slot) {
    const int64_t image = unit / 2;
    if (unit % 2 == 0) {
      select_for_classification(image, slot);
    } else if (!select_for_localization(image, slot)) {
      for (int64_t b = 0; b < num_blocks; ++b) amplify_image_block(image, b, slot);
      select_for_localization(image, slot);
    }
    const auto anchor = [&](int64_t j) { return tiles[j / kTilePoints][static_cast<int>(j % kTilePoints)]; };
    batch.for_each_region(image, [&](const Box& region) {
      const int64_t first = image * num_points;
      if (unit % 2 == 0)
        with_strided<3>(pred_boxes, [&](const auto& boxes) {
          ignore_boxes_inside(region, settings.share, num_points, by_box.owner + first, [&](int64_t j) {
            return load_box(boxes.data + image * boxes.stride[0] + j * boxes.stride[1], boxes.stride[2]);
          });
        });
      else
        for (const Standing& standing : {by_anchor, by_class})
          ignore_boxes_inside(region, settings.share, num_points, standing.owner + first, anchor);
    });
  });
  return {cls, loc, original, counts, iou};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("anchor_mutual_guidance_assign", MGASSIGN_OPERATOR(anchor_mutual_guidance_assign_cpu));
}
