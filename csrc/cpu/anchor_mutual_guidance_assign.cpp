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
  check_predictions(pred_boxes, pred_logits, gt_boxes, gt_labels, num_images, num_points);
  if (wanted) check_property(*wanted, gt_boxes, "wanted");
  const Settings settings{static_cast<float>(sigma), activation == 1, static_cast<float>(high), static_cast<float>(low),
                          static_cast<float>(ignore_share)};

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
  const std::unique_ptr<BoxTile[]> tiles = new_values<BoxTile>(tiles_for(num_points));  // the anchors
  const FloatView<3> boxes(pred_boxes), logits(pred_logits);
  auto workspaces = scratch_for<AnchorWorkspace>(threads, batch.largest_image(), settings.sigma, settings.sigmoid);
  const std::unique_ptr<float[]> scores = new_values<float>(2 * work);
  const Standing by_anchor{original.mutable_data_ptr<int64_t>(), scores.get()};
  const Standing by_box{cls.mutable_data_ptr<int64_t>(), iou.mutable_data_ptr<float>()};
  const Standing by_class{loc.mutable_data_ptr<int64_t>(), scores.get() + work};
  const int64_t words = PointSet::words_for(num_points);
  const std::unique_ptr<uint64_t[]> sets = new_values<uint64_t>(2 * num_images * words);
  // Of an image: the anchors that overlap an object by what is ignored, or more; those that Classify to Localize
  // settled.
  const auto near_ones = [&](int64_t image) { return PointSet{sets.get() + 2 * image * words}; };
  const auto settled = [&](int64_t image) { return PointSet{sets.get() + (2 * image + 1) * words}; };
  const auto anchors_of = [&](int64_t b) { return block_at(b, num_points, tiles.get() + b * kTilesOfBlock); };
  const auto predictions_of = [&](int64_t image, int64_t b, BlockWorkspace& workspace) {
    const Block block = block_at(b, num_points, workspace.tiles.data());
    load_tiles(block, boxes, image * boxes.stride[0], boxes.stride[1], boxes.stride[2], workspace.tiles.data());
    return block;
  };

  // Pass 1: competition by overlap.
  BestPlaces anchor_blocks(num_objects), box_blocks(num_objects);
  const FloatView<2> anchor_boxes(anchors);
  for_each_unit(num_blocks, threads, [&](int64_t unit, int64_t slot) {
    const int64_t b = last_first(unit, num_blocks);
    load_tiles(anchors_of(b), anchor_boxes, 0, anchor_boxes.stride[0], anchor_boxes.stride[1],
               tiles.get() + b * kTilesOfBlock);
    for (int64_t image = 0; image < num_images; ++image) {
      const int64_t first = image * num_points;
      const Objects objects = batch.ranked(image);
      BlockWorkspace& workspace = workspaces[slot].block;
      const Standing anchor = by_anchor.from(first), box = by_box.from(first), amplified = by_class.from(first);
      const Block block = anchors_of(b);
      std::fill_n(amplified.owner + block.first, block.count, kBackground);
      std::fill_n(amplified.score + block.first, block.count, 0.0f);
      std::fill_n(settled(image).words + block.first / PointSet::kOfWord, PointSet::words_for(block.count), 0);
      compete_for_block(block, objects, workspace, anchor.owner, anchor.score, anchor_blocks, batch.first(image));
      leave_out(block, settings.low, anchor, near_ones(image));
      compete_for_block(predictions_of(image, b, workspace), objects, workspace, box.owner, box.score, box_blocks,
                        batch.first(image));
    }
  });

  // Each object's best one, by rows, of the blocks in which it is.
  const auto find_best = [&](int64_t image, const BestPlaces& blocks, const auto& block_of,
                             std::vector<ScoredPoint>& best) {
    const Objects objects = batch.ranked(image);
    for (int64_t k = 0; k < objects.count; ++k) {
      ScoredPoint& found = best[batch.first(image) + objects.index[k]] =
          blocks.of(batch.first(image) + objects.index[k]);
      if (found.score > 0.0f)
        found.point = static_cast<int32_t>(first_with(block_of(found.point), objects[k], found.score));
    }
  };

  // Pass 2: the original strategy.
  std::vector<ScoredPoint> best_anchor(num_objects), best_box(num_objects), best_class(num_objects);
  std::vector<int64_t> between(num_objects);  // how many more points than N_g are neither the object's nor background
  std::vector<float> needed(num_objects + kLanes), floor(num_objects), highest_floor(num_images);  // see Amplification
  for_each_unit(num_images, threads_for(num_images, 2 * work), [&](int64_t image, int64_t) {
    const Objects objects = batch.ranked(image);
    const int64_t first_row = batch.first(image);
    const Standing standing = by_anchor.from(image * num_points);
    find_best(image, anchor_blocks, anchors_of, best_anchor);
    const PointSet points = near_ones(image);
    force_best(objects, batch, first_row, best_anchor, standing, &points);
    int64_t* const positives = num_positives + first_row;
    points.for_each(num_points, [&](int64_t j) {
      int64_t& owner = standing.owner[j];
      if (standing.score[j] >= settings.high) {
        ++positives[owner];
      } else {
        ++between[first_row + owner];
        owner = kIgnored;
      }
    });
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t g = objects.index[k], row = first_row + g, found = positives[g];
      positives[g] = quota.of(wanted ? wanted->const_data_ptr<int64_t>()[row] : found);
      const float supposed = positives[g] <= std::max<int64_t>(found, 1) ? settings.high  // one, as good, is forced
                             : positives[g] <= found + between[row]      ? settings.low
                                                                         : 0.0f;
      floor[row] = smaller(supposed, best_anchor[row].score);
      needed[first_row + k] = least_overlap(floor[row], settings.sigma);
      highest_floor[image] = larger(highest_floor[image], floor[row]);
    }
  });

  auto selectors = scratch_for<Selector>(threads, num_points, batch.largest_image());
  const auto select_for_classification = [&](int64_t image, int64_t slot) {
    const Standing standing = by_box.from(image * num_points);
    const int64_t first_row = batch.first(image), size = batch.size(image);
    find_best(image, box_blocks, [&](int64_t b) { return predictions_of(image, b, workspaces[slot].block); }, best_box);
    force_best(batch.ranked(image), batch, first_row, best_box, standing);
    Selector& selector = selectors[slot];
    for (int64_t g = 0; g < size; ++g) selector.count[g] = num_positives[first_row + g] + between[first_row + g];
    selector.best.run(standing.owner, standing.score, num_positives + first_row, size, selector.count.data());
    for (int64_t g = 0; g < size; ++g) {  // the forced ones' true overlap
      const ScoredPoint best = best_box[first_row + g];
      if (best.score > 0.0f && standing.owner[best.point] == g) standing.score[best.point] = best.score;
    }
  };

  // Pass 3: Localize to Classify's selection; Classify to Localize, in rounds for those images that need more of them.
  BestPlaces amplified(num_objects);
  // Whether an object of the image has fewer anchors than it may: then it asks for less, and the others for no more.
  const auto ask_for_more = [&](int64_t image, bool first_round, int64_t slot) {
    const Standing standing = by_class.from(image * num_points);
    const Objects objects = batch.ranked(image);
    const int64_t first_row = batch.first(image), size = batch.size(image);
    for (int64_t g = 0; g < size; ++g) best_class[first_row + g] = amplified.of(first_row + g);
    const PointSet points = settled(image);
    force_best(objects, batch, first_row, best_class, standing, &points);
    std::vector<int64_t>& found = selectors[slot].count;
    std::fill_n(found.begin(), size, int64_t{0});
    points.for_each(num_points, [&](int64_t j) {
      found[standing.owner[j]] += standing.score[j] >= floor[first_row + standing.owner[j]];
    });
    bool any = false;
    for (int64_t k = 0; k < objects.count; ++k) {
      const int64_t g = objects.index[k], row = first_row + g;
      const bool lacks = found[g] < num_positives[row] && floor[row] > 0.0f;
      if (lacks) floor[row] = first_round ? kNextFloor * floor[row] : 0.0f;
      needed[first_row + k] = lacks ? least_overlap(floor[row], settings.sigma) : kInfinity;
      any |= lacks;
    }
    return any;
  };
  std::vector<int64_t> images(num_images);
  std::iota(images.begin(), images.end(), int64_t{0});
  for (bool first_round = true; !images.empty(); first_round = false) {
    const int64_t left = static_cast<int64_t>(images.size()), selections = first_round ? num_images : 0;
    for_each_unit(selections + left * num_blocks, threads, [&](int64_t unit, int64_t slot) {
      if (unit < selections) return select_for_classification(unit, slot);
      const int64_t image = images[(unit - selections) / num_blocks], b = (unit - selections) % num_blocks;
      const int64_t first = image * num_points, first_row = batch.first(image);
      const Amplification of_image{
          batch.ranked(image),      labels + first_row,        logits,
          image * logits.stride[0], needed.data() + first_row, floor.data() + first_row,
          highest_floor[image],     by_anchor.score + first,   first_round,
      };
      amplify_block(anchors_of(b), of_image, workspaces[slot], by_class.from(first), settled(image), amplified,
                    first_row);
    });
    std::vector<uint8_t> lacking(left);
    for_each_unit(left, std::min(threads, threads_for(left, 2 * work)),
                  [&](int64_t i, int64_t slot) { lacking[i] = ask_for_more(images[i], first_round, slot); });
    int64_t kept = 0;
    for (int64_t i = 0; i < left; ++i)
      if (lacking[i]) images[kept++] = images[i];
    images.resize(kept);
  }

  // Pass 4: Classify to Localize's selection; what lies in regions.
  for_each_unit(num_images, std::min(threads, threads_for(num_images, 2 * work)), [&](int64_t image, int64_t slot) {
    const int64_t first = image * num_points;
    const Standing standing = by_class.from(first);
    const PointSet points = settled(image);
    selectors[slot].best.run(standing.owner, standing.score, num_positives + batch.first(image), batch.size(image),
                             nullptr, &points);
    const auto anchor = [&](int64_t j) { return tiles[j / kTilePoints][static_cast<int>(j % kTilePoints)]; };
    batch.for_each_region(image, [&](const Box& region) {
      for (const Standing& of : {by_anchor, by_class})
        ignore_boxes_inside(region, settings.share, num_points, of.owner + first, anchor);
      ignore_boxes_inside(region, settings.share, num_points, by_box.owner + first, [&](int64_t j) {
        return boxes.box_at(image * boxes.stride[0] + j * boxes.stride[1], boxes.stride[2]);
      });
    });
  });
  return {cls, loc, original, counts, iou};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("anchor_mutual_guidance_assign", MGASSIGN_OPERATOR(anchor_mutual_guidance_assign_cpu));
}
