#include "anchor_amplifier.h"

namespace mgassign::cpu {

MGASSIGN_VECTOR void least_overlaps(const float* best, int64_t count, float sigma, float* least) {
  for (int64_t i = 0; i < count; ++i) least[i] = best[i] < 1.0f ? least_overlap(best[i], sigma) : 0.0f;
}

namespace {

MGASSIGN_VECTOR int64_t score_all(float* score, const float* logit, const float* asked, int64_t count, bool sigmoid,
                                  float sigma, int32_t* heard) {
  if (sigmoid)
    for (int64_t i = 0; i < count; ++i) score[i] = amplify(score[i], sigmoid_f32(logit[i]), sigma);
  else
    for (int64_t i = 0; i < count; ++i) score[i] = amplify(score[i], probability_f32(logit[i]), sigma);
  return find_hits(count, heard, [&](int64_t i) MGASSIGN_INLINE_LAMBDA { return score[i] >= asked[i]; });
}

}  // namespace

int64_t AnchorAmplifier::amplify_all() { return score_all(score_, logit_, asked_, count_, sigmoid_, sigma_, heard_); }

MGASSIGN_VECTOR int64_t reaching(const BoxTile& tile, const Objects& objects, int64_t k, float needed,
                                 const float* needed_at, float* overlap, int32_t* found) {
  const Object object = objects[k];
  float iou[kTilePoints];  // an array of its own: then nothing that is written may be what is read
  int32_t hit[kTilePoints], any = 0;
  for (int i = 0; i < kTilePoints; ++i) iou[i] = iou_with(tile, i, object);
  for (int i = 0; i < kTilePoints; ++i)
    hit[i] = (iou[i] > 0.0f) & (iou[i] >= needed) & (iou[i] >= needed_at[i]) ? 1 : 0;
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

MGASSIGN_VECTOR int64_t rivals(const Box& box, const Boxes& objects, const float* needed, float overlap,
                               int32_t* found) {
  const float area = area_of(box);
  return find_hits(objects.count, found, [&](int64_t k) MGASSIGN_INLINE_LAMBDA {
    const float iou = iou_of(box, area, objects[k], objects.area[k]);
    return (needed[k] >= 0.99f * overlap) & (iou > 0.0f) & (iou >= overlap);
  });
}

namespace {

struct ScoredObject {
  Object object;
  float score;
};

// Lets the objects near an anchor that may not have been heard contest it.
void contest(int64_t j, const Box& anchor, const Amplification& image, const Objects& near, AnchorWorkspace& workspace,
             ScoredObject& winner) {
  const AnchorAmplifier& amplifier = workspace.amplifier;
  int32_t* const found = workspace.block.found.data();
  const float least = least_overlap(winner.score, amplifier.sigma());
  const int64_t num_rivals = rivals(anchor, near, workspace.block.needed.data(), least, found);
  for (int64_t n = 0; n < num_rivals; ++n) {
    const Object rival = near[found[n]], held = winner.object;
    const float logit = image.logits.at(image.place_of_logit(j, image.labels[rival.index]));
    const float score = amplifier.score(iou_of(anchor, area_of(anchor), rival.box, rival.area), logit);
    const bool first = smaller_object(rival.area, rival.index, held.area, held.index);
    if (score > winner.score || (score == winner.score && first)) winner = {rival, score};
  }
}

}  // namespace

void amplify_block(const Block& block, const Amplification& image, AnchorWorkspace& workspace, const Standing& standing,
                   const PointSet& settled, BestPlaces& best, int64_t first_row) {
  BlockWorkspace& scratch = workspace.block;
  int32_t* const found = scratch.found.data();
  const Extent extent = block.extent();
  const int64_t count = within_reach(extent, image.objects, image.needed, found);
  if (count == 0) return;
  const Objects near = scratch.take_near(image.objects, count, image.needed);
  for (int64_t k = 0; k < near.count; ++k) {
    workspace.place[k] = found[k];
    workspace.best[k] = {0.0f, -1};
    workspace.floor[k] = image.floor[near.index[k]];
    workspace.label[k] = image.labels[near.index[k]];
  }
  float highest[kBlockPoints] = {};
  int32_t whose[kBlockPoints];  // a place in the image, the first of equals
  bool matters[kBlockPoints] = {};
  const auto hear = [&](int64_t j, int32_t k, float score) {
    const int64_t i = j - block.first;
    if (score > highest[i]) {
      highest[i] = score;
      whose[i] = workspace.place[k];
    }
    matters[i] |= score > 0.0f && score >= workspace.floor[k] && image.may_win(j, score);
    // Points come in their order, so an equal score never displaces.
    if (score > workspace.best[k].score) workspace.best[k] = {score, static_cast<int32_t>(j)};
  };
  const auto hear_all = [&] {
    const auto logit_of = [&](int64_t j, int32_t k) {
      return image.logits.at(image.place_of_logit(j, workspace.label[k]));
    };
    workspace.amplifier.flush(logit_of, hear);
  };
  block.for_each_tile([&](const BoxTile& tile, int64_t first, int64_t count) {
    const int64_t num_reaching = within_reach(tile.extent, near, scratch.needed.data(), found);
    float needed_at[kTilePoints] = {}, overlap[kTilePoints];
    int32_t lanes[kTilePoints + 1];
    if (!image.first_round && num_reaching > 0)
      least_overlaps(image.best_overlap + first, count, workspace.amplifier.sigma(), needed_at);
    for (int64_t n = 0; n < num_reaching; ++n) {
      const int32_t k = found[n];
      const int64_t hits = reaching(tile, near, k, scratch.needed[k], needed_at, overlap, lanes);
      if (workspace.amplifier.is_full()) hear_all();
      for (int64_t i = 0; i < hits; ++i) {
        const int64_t j = first + lanes[i];
        if (standing.owner[j] >= 0) continue;
        image.logits.prefetch(image.place_of_logit(j, workspace.label[k]));
        workspace.amplifier.add(j, k, overlap[lanes[i]], kWideRoom * workspace.floor[k]);
      }
    }
  });
  hear_all();
  for (int64_t k = 0; k < near.count; ++k)
    if (workspace.best[k].score > 0.0f) best.raise(first_row + near.index[k], workspace.best[k]);

  Objects others{};
  for (int64_t i = 0; i < block.count; ++i) {
    if (!matters[i]) continue;
    const int64_t j = block.first + i;
    ScoredObject winner{image.objects[whose[i]], highest[i]};
    // Whoever asks for a lower score was heard, if it has one as high. The others may have it unheard.
    if (winner.score < image.highest_floor) {
      if (others.count == 0)
        others = scratch.take_near(image.objects, touching(extent.bounds, image.objects, found), image.needed);
      const Box anchor = block.tiles[i / kTilePoints][static_cast<int>(i % kTilePoints)];
      contest(j, anchor, image, others, workspace, winner);
    }
    standing.score[j] = winner.score;
    standing.owner[j] = winner.object.index;
    settled.add(j);
  }
}

}  // namespace mgassign::cpu
