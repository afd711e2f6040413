// Dynamic soft labels: dynamic_k.cuh has the kernels.
#include "dynamic_k.cuh"

MGASSIGN_CUDA_LIBRARY(m) {
  m.impl("soft_label_assign", TORCH_BOX(&mgassign::soft_label_assign<mgassign::cuda::OnCuda>));
}
