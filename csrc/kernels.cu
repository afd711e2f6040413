// Every CUDA kernel in one translation unit: what they have in common nvcc compiles once, and what it makes for an
// architecture it compresses as a whole, to three quarters. Each of the files compiles by itself too.
#include "cuda/amplified_centerness.cu"
#include "cuda/anchor_mutual_guidance_assign.cu"
#include "cuda/atss_assign.cu"
#include "cuda/box_iou.cu"
#include "cuda/dynamic_k.cu"
#include "cuda/fcos_assign.cu"
#include "cuda/max_iou_assign.cu"
#include "cuda/mutual_guidance_assign.cu"
#include "cuda/selection.cu"
#include "cuda/task_aligned_assign.cu"
#include "cuda/topk_per_object.cu"
