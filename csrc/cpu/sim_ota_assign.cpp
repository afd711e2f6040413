// SimOTA: dynamic_k.h has the passes.
#include "dynamic_k.h"

namespace mgassign::cpu {

MGASSIGN_VECTOR void find_costs(const SimOta& rule, const Object& object, bool has_objectness, CostLanes& lanes) {
  cost_lanes(rule, object, has_objectness, lanes);
}

MGASSIGN_VECTOR float sum_over_classes(const SimOta& rule, const float* raw, int64_t num_classes, bool has_objectness,
                                       float objectness) {
  return sum_lanes(rule, raw, num_classes, has_objectness, objectness);
}

constexpr auto& sim_ota_assign_cpu = sim_ota_assign<OnCpu>;

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("sim_ota_assign", MGASSIGN_OPERATOR(sim_ota_assign_cpu)); }
