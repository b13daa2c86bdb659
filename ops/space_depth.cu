#include "ops/space_depth.h"
#include "tensor/cuda.cuh"

namespace rivulet::cuda {
namespace {

// A thread per element, numbered along the side that is written, so that writes join up.
template <class T, bool to_space>
__global__ void move_blocks_kernel(T* space, T* depth, FastDiv frames, FastDiv rows, FastDiv columns,
                                   FastDiv c, FastDiv st, FastDiv sh, FastDiv sw, uint32_t count) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const auto cut = [](uint32_t& n, const FastDiv& d) {
    const uint32_t q = d.div(n), r = n - q * d.d;
    n = q;
    return r;
  };
  uint32_t rest = i, x, y, t, b, channel, dt, dh, dw;
  if (to_space) {
    channel = cut(rest, c);
    dw = cut(rest, sw), x = cut(rest, columns);
    dh = cut(rest, sh), y = cut(rest, rows);
    dt = cut(rest, st), t = cut(rest, frames);
  } else {
    dw = cut(rest, sw), dh = cut(rest, sh), dt = cut(rest, st);
    channel = cut(rest, c);
    x = cut(rest, columns), y = cut(rest, rows), t = cut(rest, frames);
  }
  b = rest;
  const int64_t deep =
      ((((((int64_t(b) * frames.d + t) * rows.d + y) * columns.d + x) * c.d + channel) * st.d + dt) * sh.d +
       dh) *
          sw.d +
      dw;
  const int64_t wide =
      ((((int64_t(b) * frames.d + t) * st.d + dt) * rows.d * sh.d + y * sh.d + dh) * columns.d * sw.d +
       x * sw.d + dw) *
          c.d +
      channel;
  if (to_space)
    space[wide] = depth[deep];
  else
    depth[deep] = space[wide];
}

}  // namespace

void move_blocks(const Tensor& space, const Tensor& depth, const BlockSize& block, bool to_space) {
  dispatch_floating(space.dtype(), "move_blocks", [&]<class L>() {
    using T = typename OnDevice<L>::type;
    check(space.numel() <= 0x7fffffff, "move_blocks: x of shape ", space.shape(),
          " is too large for one launch");
    const auto div = [](int64_t n) { return FastDiv(uint32_t(n)); };
    launch({blocks_for(space.numel(), kThreads), kThreads},
           to_space ? move_blocks_kernel<T, true> : move_blocks_kernel<T, false>, pointer<T>(space),
           pointer<T>(depth), div(depth.dim(1)), div(depth.dim(2)), div(depth.dim(3)), div(space.dim(4)),
           div(block[0]), div(block[1]), div(block[2]), space.numel());
  });
}

}  // namespace rivulet::cuda
