// SimOTA: dynamic_k.cuh has the kernels.
#include "dynamic_k.cuh"

MGASSIGN_CUDA_LIBRARY(m) { m.impl("sim_ota_assign", TORCH_BOX(&mgassign::sim_ota_assign<mgassign::cuda::OnCuda>)); }
