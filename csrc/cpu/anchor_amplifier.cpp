#include "anchor_amplifier.h"

namespace mgassign::cpu {

MGASSIGN_VECTOR void least_overlaps(const float* best, int64_t count, float sigma, float* least) {
  for (int64_t i = 0; i < count; ++i) least[i] = best[i] < 1.0f ? least_overlap(best[i], sigma) : 0.0f;
}

MGASSIGN_VECTOR void amplify_all(float* score, const float* logit, int64_t count, bool sigmoid, float sigma) {
  if (sigmoid)
    for (int64_t i = 0; i < count; ++i) score[i] = amplify(score[i], sigmoid_f32(logit[i]), sigma);
  else
    for (int64_t i = 0; i < count; ++i) score[i] = amplify(score[i], probability_f32(logit[i]), sigma);
}

MGASSIGN_VECTOR int64_t reaching(const BoxTile& tile, const Object object, float needed, const float* needed_at,
                                 float* overlap, int32_t* found) {
  float iou[kTilePoints];  // an array of its own: then nothing that is written may be what is read
  int32_t hit[kTilePoints], any = 0;
  for (int i = 0; i < kTilePoints; ++i) iou[i] = iou_with(tile, i, object);
  for (int i = 0; i < kTilePoints; ++i) hit[i] = (iou[i] >= needed) & (iou[i] >= needed_at[i]) ? 1 : 0;
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

MGASSIGN_VECTOR int64_t rivals(const Box& box, const Objects& objects, float needed, int32_t* found) {
  const float area = area_of(box);
  return find_hits(objects.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    return iou_of(box, area, {objects.x1[k], objects.y1[k], objects.x2[k], objects.y2[k]}, objects.area[k]) >= needed;
  });
}

void amplify_block(const Block& block, const Amplification& image, AnchorWorkspace& workspace, const Standing& standing,
                   BestPlaces& best, int64_t first_row) {
  BlockWorkspace& scratch = workspace.block;
  int32_t* const found = scratch.found.data();
  const Extent extent = block.extent();
  if (within_reach(extent, image.objects, image.needed, found) == 0) return;
  const Objects near = scratch.take_near(image.objects, touching(extent.bounds, image.objects, found), image.needed);
  for (int64_t k = 0; k < near.count; ++k) {
    workspace.best[k] = {0.0f, -1};
    workspace.floor[k] = image.floor[near.index[k]];
    workspace.label[k] = image.labels[near.index[k]];
  }
  float highest[kBlockPoints] = {};
  bool matters[kBlockPoints] = {};
  const auto add = [&](int64_t j, int32_t k, float overlap) {
    image.logits.prefetch(image.place_of_logit(j, workspace.label[k]));
    workspace.amplifier.add(j, k, overlap);
  };
  const auto flush = [&](const auto& take) {
    const auto logit_of = [&](int64_t j, int32_t k) {
      return image.logits.at(image.place_of_logit(j, workspace.label[k]));
    };
    workspace.amplifier.flush(logit_of, take);
  };

  const auto hear = [&](int64_t j, int32_t k, float score) {
    const int64_t i = j - block.first;
    highest[i] = larger(highest[i], score);
    matters[i] |= score >= workspace.floor[k] && image.may_win(j, score);
    // Points come in their order, so an equal score never displaces.
    if (score > workspace.best[k].score) workspace.best[k] = {score, static_cast<int32_t>(j)};
  };
  block.for_each_tile([&](const BoxTile& tile, int64_t first, int64_t count) {
    const int64_t num_reaching = within_reach(tile.extent, near, scratch.needed.data(), found);
    float needed_at[kTilePoints] = {}, overlap[kTilePoints];
    int32_t lanes[kTilePoints + 1];
    if (!image.first_round && num_reaching > 0)
      least_overlaps(image.best_overlap + first, count, workspace.amplifier.sigma(), needed_at);
    for (int64_t n = 0; n < num_reaching; ++n) {
      const int32_t k = found[n];
      const int64_t hits = reaching(tile, near[k], scratch.needed[k], needed_at, overlap, lanes);
      if (workspace.amplifier.is_full()) flush(hear);
      for (int64_t i = 0; i < hits; ++i)
        if (standing.owner[first + lanes[i]] < 0) add(first + lanes[i], k, overlap[lanes[i]]);
    }
  });
  flush(hear);
  for (int64_t k = 0; k < near.count; ++k)
    if (workspace.best[k].score > 0.0f) best.raise(first_row + near.index[k], workspace.best[k]);

  const auto take = [&](int64_t j, int32_t k, float score) {
    // Objects come in theirs.
    if (!(score > standing.score[j])) return;
    standing.score[j] = score;
    standing.owner[j] = near.index[k];
  };
  for (int64_t i = 0; i < block.count; ++i) {
    if (!matters[i]) continue;
    const Box anchor = block.tiles[i / kTilePoints][static_cast<int>(i % kTilePoints)];
    const int64_t count =
        rivals(anchor, near, larger(least_overlap(highest[i], workspace.amplifier.sigma()), kLeast), found);
    for (int64_t n = 0; n < count; ++n) {
      const Object rival = near[found[n]];
      if (workspace.amplifier.is_full()) flush(take);
      add(block.first + i, found[n], iou_of(anchor, area_of(anchor), rival.box, rival.area));
    }
  }
  flush(take);
}

}  // namespace mgassign::cpu
