#include "ops/space_depth.h"

#include "tensor/parallel.h"

namespace rivulet {
namespace cpu {

void move_blocks(const Tensor& space, const Tensor& depth, const BlockSize& block, bool to_space) {
  dispatch_floating(space.dtype(), "move_blocks", [&]<class T>() {
    const auto [st, sh, sw] = block;
    const int64_t h = depth.dim(2), w = depth.dim(3), c = space.dim(4), cells = st * sh * sw;
    const int64_t frames = depth.dim(1);
    T *const pixels = space.data<T>(), *const deep = depth.data<T>();
    // One row of blocks of one frame of the deep side at a time.
    parallel_for(depth.dim(0) * frames * h, 1, [&](int64_t row, int64_t) {
      const int64_t y = row % h, t = row / h % frames, b = row / h / frames;
      for (int64_t cell = 0; cell < cells; ++cell) {
        const int64_t dt = cell / (sh * sw), dh = cell / sw % sh, dw = cell % sw;
        T* at = pixels + ((((b * frames + t) * st + dt) * h + y) * sh + dh) * w * sw * c + dw * c;
        T* from = deep + row * w * c * cells + cell;
        for (int64_t x = 0; x < w; ++x, at += sw * c, from += c * cells) {
          if (to_space)
            for (int64_t j = 0; j < c; ++j) at[j] = from[j * cells];
          else
            for (int64_t j = 0; j < c; ++j) from[j * cells] = at[j];
        }
      }
    });
  });
}

}  // namespace cpu

namespace {

int64_t cells_of(const BlockSize& block, const char* who) {
  for (int64_t n : block) check(n >= 1, who, ": a block of ", block[0], " x ", block[1], " x ", block[2]);
  return block[0] * block[1] * block[2];
}

}  // namespace

Tensor space_to_depth(const Tensor& x, const BlockSize& block) {
  const int64_t cells = cells_of(block, "space_to_depth");
  check(x.dims() == 5 && x.dim(1) % block[0] == 0 && x.dim(2) % block[1] == 0 && x.dim(3) % block[2] == 0,
        "space_to_depth: x has shape ", x.shape(), ", blocks are ", block[0], " x ", block[1], " x ",
        block[2]);
  const Tensor in = x.contiguous();
  const Tensor y({x.dim(0), x.dim(1) / block[0], x.dim(2) / block[1], x.dim(3) / block[2], x.dim(4) * cells},
                 x.dtype(), x.device());
  if (x.numel() > 0) ON_DEVICE(x, move_blocks(in, y, block, false));
  return record("space_to_depth", y, {in},
                [block](const Tensor& dy) -> Tensors { return {depth_to_space(dy, block)}; });
}

Tensor depth_to_space(const Tensor& x, const BlockSize& block) {
  const int64_t cells = cells_of(block, "depth_to_space");
  check(x.dims() == 5 && x.dim(4) % cells == 0, "depth_to_space: x has shape ", x.shape(), ", blocks hold ",
        cells, " pixels");
  const Tensor in = x.contiguous();
  const Tensor y({x.dim(0), x.dim(1) * block[0], x.dim(2) * block[1], x.dim(3) * block[2], x.dim(4) / cells},
                 x.dtype(), x.device());
  if (x.numel() > 0) ON_DEVICE(x, move_blocks(y, in, block, true));
  return record("depth_to_space", y, {in},
                [block](const Tensor& dy) -> Tensors { return {space_to_depth(dy, block)}; });
}

namespace {

OpCase block_case(const char* name, Tensor (*op)(const Tensor&, const BlockSize&), std::vector<Shapes> check,
                  Shapes bench) {
  return {.name = name,
          .run = [op](const Tensors& in) -> Tensors {
            // A block of each kind that the size of x allows.
            const BlockSize all{2, 2, 2}, time{2, 1, 1}, wide{1, 1, 2};
            const bool even = in[0].dim(1) % 2 == 0 && in[0].dim(2) % 2 == 0 && in[0].dim(4) % 8 == 0;
            return {op(in[0], even ? all : wide), op(in[0], even ? time : BlockSize{1, 1, 1})};
          },
          .check = std::move(check),
          .bench = {std::move(bench)},
          .bytes = [](const Shapes& s) { return 4 * bytes_of(s); },
          .flops = [](const Shapes&) { return 0.0; }};
}

}  // namespace

const OpCase& space_to_depth_case() {
  static const OpCase kCase =
      block_case("space_to_depth", space_to_depth, {{{1, 2, 4, 2, 8}}, {{2, 1, 3, 4, 3}}, {{1, 1, 1, 2, 1}}},
                 {{1, 4, 36, 64, 64}});
  return kCase;
}

const OpCase& depth_to_space_case() {
  static const OpCase kCase =
      block_case("depth_to_space", depth_to_space, {{{1, 2, 2, 3, 16}}, {{2, 1, 3, 2, 6}}, {{1, 1, 1, 1, 2}}},
                 {{1, 2, 18, 32, 512}});
  return kCase;
}

}  // namespace rivulet
