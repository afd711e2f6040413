#include "tile.h"

namespace mgassign::cpu {

namespace {

// Not prepare() itself: of a member function clang 14 makes clones that nothing else finds.
MGASSIGN_VECTOR void prepare_tile(BoxTile& tile, int count) {
  for (int i = count; i < kTilePoints; ++i) tile.set(i, {0.0f, 0.0f, 0.0f, 0.0f});
  float left[kTilePoints], top[kTilePoints], right[kTilePoints], bottom[kTilePoints];
  float least[kTilePoints], most[kTilePoints];
  for (int i = 0; i < kTilePoints; ++i) {
    const Box box = tile[i];
    const bool valid = is_valid(box);
    left[i] = chosen(valid, box.x1, kNowhere.x1);
    top[i] = chosen(valid, box.y1, kNowhere.y1);
    right[i] = chosen(valid, box.x2, kNowhere.x2);
    bottom[i] = chosen(valid, box.y2, kNowhere.y2);
    tile.x1[i] = chosen(valid, box.x1, 0.0f);
    tile.y1[i] = chosen(valid, box.y1, 0.0f);
    tile.x2[i] = chosen(valid, box.x2, 0.0f);
    tile.y2[i] = chosen(valid, box.y2, 0.0f);
    tile.area[i] = chosen(valid, area_of(box), 0.0f);
    least[i] = chosen(valid, tile.area[i], kInfinity);
    most[i] = tile.area[i];
  }
  for (int half = kTilePoints / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      least[i] = smaller(least[i], least[i + half]);
      most[i] = larger(most[i], most[i + half]);
    }
  tile.extent = {box_around(left, top, right, bottom), least[0], most[0]};
}

}  // namespace

void BoxTile::prepare(int count) { prepare_tile(*this, count); }

}  // namespace mgassign::cpu
