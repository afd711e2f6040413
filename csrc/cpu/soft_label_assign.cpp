// Dynamic soft labels: dynamic_k.h has the passes.
#include "dynamic_k.h"

namespace mgassign::cpu {

MGASSIGN_VECTOR void find_costs(const SoftLabel& rule, const Object& object, bool has_objectness, CostLanes& lanes) {
  cost_lanes(rule, object, has_objectness, lanes);
}

MGASSIGN_VECTOR float sum_over_classes(const SoftLabel& rule, const float* raw, int64_t num_classes,
                                       bool has_objectness, float objectness) {
  return sum_lanes(rule, raw, num_classes, has_objectness, objectness);
}

constexpr auto& soft_label_assign_cpu = soft_label_assign<OnCpu>;

}  // namespace mgassign::cpu

STABLE_TORCH_LIBRARY_IMPL(mgassign, CPU, m) { m.impl("soft_label_assign", MGASSIGN_OPERATOR(soft_label_assign_cpu)); }
