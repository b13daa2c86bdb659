// The device work behind Tensor's own methods. Callers have checked shapes, dtypes and devices.
#pragma once

#include "tensor/tensor.h"

namespace rivulet {

KERNELS(
    // to = from, converted to to's dtype; from repeats along broadcast dims. Both on this device.
    void copy(const Tensor& to, const Tensor& from);
    // Every element = value.
    void fill(const Tensor& to, double value);
    // to += scale * from, f32 arithmetic for the half types; from repeats along broadcast dims.
    void add_in_place(const Tensor& to, const Tensor& from, double scale);
    // out (dense, of a shape that broadcasts to g's) = the sums of g over the broadcast dims.
    void sum_to(const Tensor& out, const Tensor& g); bool has_nan(const Tensor& x);
    // Fill a dense f32 tensor with elements offset, offset + 1, ... of the stream `seed`.
    void draw_normal(const Tensor& to, uint64_t seed, uint64_t offset);
    void draw_uniform(const Tensor& to, float low, float range, uint64_t seed, uint64_t offset);)

namespace cuda {
// Raw memory on the GPU, taken and given back in the order of the stream. allocate throws an Error that
// says what was asked for and what is held.
void* allocate(int64_t bytes);
void release(void* p, int64_t bytes);
// Copies dense bytes between the CPU and the GPU, in stream order. The CPU side may be reused at once.
void transfer(const Tensor& to, const Tensor& from);
}  // namespace cuda

}  // namespace rivulet
