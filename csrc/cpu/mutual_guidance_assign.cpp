// Mutual Guidance, fused: the original strategy, Localize to Classify and Classify to Localize in one call.
//
// Three passes, each spread over the threads:
//   1. per image: rank the objects, run the original strategy, which gives N_g;
//   2. per strip of neighbouring rows of points, for either task: whom does each point stand for? Written to
//      the outputs as if everyone were chosen, the scores beside them;
//   3. per image and task: keep the N_g best points of each object, then set apart what lies in regions to be ignored.
//
// Pass 2 never looks at most pairs of point and object. A strip is cut into tiles of 32 neighbouring points;
// the bounding box of a tile's predictions is small, and only objects that touch it can have an IoU there.
// Classify to Localize enumerates the points inside each object and reads one logit for each.
#include <torch/csrc/stable/library.h>

#include "amplifier.h"
#include "tile.h"

namespace mgassign::cpu {

namespace {

constexpr int64_t kTileColumns = 8;
// Classify to Localize works on higher strips: it pays for each object once per strip, not per point.
constexpr int64_t kTilesPerBand = 8;

// The predictions of up to 32 neighbouring points, and whom they fit best so far.
struct Tile {
  BoxTile boxes;
  float x[kTilePoints], y[kTilePoints];  // the points themselves, where they have to lie inside their object
  TileFit fit;
};

struct Strip {
  const Level* level;
  Span rows;
};

int64_t tile_height(const Level& level) { return kTilePoints / std::min(level.width, kTileColumns); }

// Every level's rows in runs of `tiles_high` tiles' height.
std::vector<Strip> cut_into_strips(const Grid& grid, int64_t tiles_high) {
  std::vector<Strip> strips;
  for (const Level& level : grid.levels) {
    if (level.width == 0) continue;
    const int64_t tall = tiles_high * tile_height(level);
    for (int64_t row = 0; row < level.height; row += tall)
      strips.push_back({&level, {row, std::min(row + tall, level.height)}});
  }
  return strips;
}

// Lets the objects at the given places compete for the tile's points.
MGASSIGN_VECTOR void fit(Tile& tile, const Objects& objects, const int32_t* places, int64_t count) {
  compete(
      tile.boxes, objects, places, count, tile.fit, [](const Object&, int) { return true; },
      [](int64_t, const float*) {});
}

MGASSIGN_VECTOR void fit_inside(Tile& tile, const Objects& objects, const int32_t* places, int64_t count) {
  compete(
      tile.boxes, objects, places, count, tile.fit,
      [&tile](const Object& object, int i) { return strictly_inside({tile.x[i], tile.y[i]}, object.box); },
      [](int64_t, const float*) {});
}

// Scratch space of one thread in pass 2.
struct Workspace {
  std::vector<Tile> tiles;
  ObjectArrays near_strip;
  std::vector<int32_t> found;
  Amplifier amplifier;

  Workspace(int64_t widest_level, int64_t most_objects, double sigma, bool sigmoid, bool level_gate)
      : tiles((widest_level + kTileColumns - 1) / kTileColumns),
        near_strip(most_objects),
        found(most_objects + 1),
        amplifier(sigma, sigmoid, level_gate, widest_level) {}
};

void localize_to_classify(const Strip& strip, const Objects& objects, const FloatView<3>& boxes, int64_t image,
                          bool inside, Workspace& workspace, Standing standing) {
  const Level& level = *strip.level;
  const int64_t tile_width = std::min(level.width, kTileColumns);
  const int64_t num_tiles = (level.width + tile_width - 1) / tile_width;
  // Visits the rows of tile t: each(its first place in the tile, its first point of the image, row, columns).
  const auto for_each_row = [&](int64_t t, const auto& each) {
    const Span columns{t * tile_width, std::min((t + 1) * tile_width, level.width)};
    int i = 0;
    for (int64_t row = strip.rows.begin; row < strip.rows.end; ++row) {
      each(i, level.first_point + row * level.width + columns.begin, row, columns);
      i += static_cast<int>(columns.end - columns.begin);
    }
    return i;
  };

  Extent extent;
  for (int64_t t = 0; t < num_tiles; ++t) {
    Tile& tile = workspace.tiles[t];
    const int count = for_each_row(t, [&](int i, int64_t j, int64_t, const Span& columns) {
      boxes.read_boxes(image * boxes.stride[0] + j * boxes.stride[1], boxes.stride[1], boxes.stride[2],
                       columns.end - columns.begin, tile.boxes.sides(i));
    });
    if (inside)
      for_each_row(t, [&](int i, int64_t, int64_t row, const Span& columns) {
        for (int64_t column = columns.begin; column < columns.end; ++column, ++i) {
          tile.x[i] = level.x.coordinate(column);
          tile.y[i] = level.y.coordinate(row);
        }
      });
    tile.boxes.prepare(count);
    tile.fit.clear();
    extent.grow(tile.boxes.extent);
  }

  int32_t* const found = workspace.found.data();
  const int64_t num_near = touching(extent.bounds, objects, found);
  for (int64_t k = 0; k < num_near; ++k) workspace.near_strip.set(k, objects[found[k]]);
  const Objects near_strip = workspace.near_strip.view(0, num_near);
  for (int64_t t = 0; t < num_tiles; ++t) {
    Tile& tile = workspace.tiles[t];
    (inside ? fit_inside : fit)(tile, near_strip, found, touching(tile.boxes.extent.bounds, near_strip, found));
    for_each_row(t, [&](int i, int64_t j, int64_t, const Span& columns) {
      std::copy_n(tile.fit.owner + i, columns.end - columns.begin, standing.owner + j);
      std::copy_n(tile.fit.score + i, columns.end - columns.begin, standing.score + j);
    });
  }
}

void classify_to_localize(const Strip& strip, const Objects& objects, const FloatView<3>& logits, int64_t image,
                          const int64_t* labels, Workspace& workspace, Standing standing) {
  const Level& level = *strip.level;
  const int64_t first = level.first_point + strip.rows.begin * level.width;
  const int64_t count = (strip.rows.end - strip.rows.begin) * level.width;
  std::fill_n(standing.owner + first, count, kBackground);
  std::fill_n(standing.score + first, count, 0.0f);

  const auto take = [&](int64_t j, int32_t object, float score) {
    if (!(score > standing.score[j])) return;
    standing.score[j] = score;
    standing.owner[j] = object;
  };
  const float top = level.y.coordinate(strip.rows.begin), bottom = level.y.coordinate(strip.rows.end - 1);
  for (int64_t k = 0; k < objects.count; ++k) {
    if (!(objects.y1[k] < bottom && objects.y2[k] > top)) continue;
    const Object object = objects[k];
    const int64_t of_class = image * logits.stride[0] + labels[object.index] * logits.stride[2];
    workspace.amplifier.add(level, strip.rows, object.box, object.index, logits, of_class, logits.stride[1], take);
  }
  workspace.amplifier.flush(take);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mutual_guidance_assign_cpu(
    const Tensor& pred_boxes, const Tensor& pred_logits, const Tensor& gt_boxes, const Tensor& gt_labels,
    MGASSIGN_OBJECTS_PARAMETERS, MGASSIGN_GRID_PARAMETERS, std::optional<Tensor> wanted, double center_radius,
    double sigma, bool level_gate, int64_t min_points, int64_t max_points, bool inside, double ignore_share,
    int64_t activation) {
  const Grid grid = make_grid(MGASSIGN_GRID_ARGUMENTS);
  const int64_t num_points = grid.num_points;
  const Quota quota(min_points, max_points, num_points);
  check_center_radius(center_radius);
  check_sigma(sigma);
  check_ignore_share(ignore_share);
  check_activation(activation);
  const int64_t num_images = check_objects(gt_boxes, gt_offsets, gt_counts);
  check_predictions(pred_boxes, pred_logits, gt_boxes, gt_labels, wanted, num_images, num_points);

  auto [cls, loc, original, counts, iou] = new_guidance(gt_boxes, num_images, num_points, gt_labels.numel());
  if (nothing_to_assign(cls, gt_boxes, gt_offsets, gt_counts)) return {cls, loc, original, counts, iou};

  ObjectBatch batch(gt_boxes, &gt_labels, gt_offsets, gt_counts);
  batch.check_labels(pred_logits.size(2));

  int64_t* const original_owner = original.mutable_data_ptr<int64_t>();
  int64_t* const num_positives = counts.mutable_data_ptr<int64_t>();
  const std::unique_ptr<float[]> amplified = new_values<float>(num_images * num_points);
  const Standing standings[2] = {{cls.mutable_data_ptr<int64_t>(), iou.mutable_data_ptr<float>()},
                                 {loc.mutable_data_ptr<int64_t>(), amplified.get()}};

  // Pass 1: the original strategy.
  const int64_t work = num_images * num_points;
  for_each_unit(num_images, threads_for(num_images, work), [&](int64_t image, int64_t) {
    const Objects objects = batch.rank(image);
    int64_t* const owner = original_owner + image * num_points;
    int64_t* const counts_of_image = num_positives + batch.first(image);
    assign_original(grid, objects, batch.size(image), center_radius, owner, counts_of_image);
    ignore_points_in_regions(grid, batch, image, owner);
    const int64_t* const wanted_of_image = wanted ? wanted->const_data_ptr<int64_t>() + batch.first(image) : nullptr;
    for (int64_t k = 0; k < objects.count; ++k) {
      const int32_t g = objects.index[k];
      counts_of_image[g] = quota.of(wanted_of_image ? wanted_of_image[g] : counts_of_image[g]);
    }
  });

  // Pass 2: competition.
  const std::vector<Strip> strips = cut_into_strips(grid, 1), bands = cut_into_strips(grid, kTilesPerBand);
  const int64_t num_strips = static_cast<int64_t>(strips.size()), num_bands = static_cast<int64_t>(bands.size());
  const int64_t threads = threads_for(num_images * num_bands, 4 * work);
  auto workspaces =
      scratch_for<Workspace>(threads, grid.widest_level(), batch.largest_image(), sigma, activation == 1, level_gate);
  const FloatView<3> boxes(pred_boxes), logits(pred_logits);
  for_each_unit(num_images * num_strips, threads, [&](int64_t unit, int64_t slot) {
    const int64_t image = unit / num_strips;
    localize_to_classify(strips[unit % num_strips], batch.ranked(image), boxes, image, inside, workspaces[slot],
                         standings[0].from(image * num_points));
  });
  for_each_unit(num_images * num_bands, threads, [&](int64_t unit, int64_t slot) {
    const int64_t image = unit / num_bands;
    classify_to_localize(bands[unit % num_bands], batch.ranked(image), logits, image, batch.labels(image),
                         workspaces[slot], standings[1].from(image * num_points));
  });

  // Pass 3: selection, and what is left over.
  const float share = static_cast<float>(ignore_share);
  const int64_t selectors_needed = threads_for(2 * num_images, 2 * work);
  auto selectors = scratch_for<TopPointSelector>(selectors_needed, num_points, batch.largest_image());
  for_each_unit(2 * num_images, selectors_needed, [&](int64_t unit, int64_t slot) {
    const int64_t image = unit / 2, task = unit % 2;
    const auto [owner, score] = standings[task].from(image * num_points);
    selectors[slot].run(owner, score, num_positives + batch.first(image), batch.size(image));
    if (task == 1) return ignore_points_in_regions(grid, batch, image, owner);
    ignore_boxes_in_regions(batch, image, share, num_points, owner, [&](int64_t j) {
      return boxes.box_at(image * boxes.stride[0] + j * boxes.stride[1], boxes.stride[2]);
    });
  });
  return {cls, loc, original, counts, iou};
}

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) {
  m.impl("mutual_guidance_assign", MGASSIGN_OPERATOR(mutual_guidance_assign_cpu));
}
