#include "tile.h"

namespace mgassign::cpu {

MGASSIGN_VECTOR void BoxTile::prepare(int count) {
  for (int i = count; i < kTilePoints; ++i) set(i, {0.0f, 0.0f, 0.0f, 0.0f});
  float left[kTilePoints], top[kTilePoints], right[kTilePoints], bottom[kTilePoints];
  float least[kTilePoints], most[kTilePoints];
  for (int i = 0; i < kTilePoints; ++i) {
    const Box box = (*this)[i];
    const bool valid = is_valid(box);
    left[i] = chosen(valid, box.x1, kNowhere.x1);
    top[i] = chosen(valid, box.y1, kNowhere.y1);
    right[i] = chosen(valid, box.x2, kNowhere.x2);
    bottom[i] = chosen(valid, box.y2, kNowhere.y2);
    x1[i] = chosen(valid, box.x1, 0.0f);
    y1[i] = chosen(valid, box.y1, 0.0f);
    x2[i] = chosen(valid, box.x2, 0.0f);
    y2[i] = chosen(valid, box.y2, 0.0f);
    area[i] = chosen(valid, area_of(box), 0.0f);
    least[i] = chosen(valid, area[i], kInfinity);
    most[i] = area[i];
  }
  for (int half = kTilePoints / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      left[i] = smaller(left[i], left[i + half]);
      top[i] = smaller(top[i], top[i + half]);
      right[i] = larger(right[i], right[i + half]);
      bottom[i] = larger(bottom[i], bottom[i + half]);
      least[i] = smaller(least[i], least[i + half]);
      most[i] = larger(most[i], most[i + half]);
    }
  extent.bounds = {left[0], top[0], right[0], bottom[0]};
  extent.least_area = least[0];
  extent.most_area = most[0];
}

}  // namespace mgassign::cpu
