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

}  // namespace mgassign::cpu
