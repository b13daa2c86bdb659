// A user's program: fits a two-layer network to a curve and prints the first and the last loss.
#include <rivulet/rivulet.h>

#include <cstdio>

using namespace rivulet;

int main() {
  Rng rng{7};
  const Tensor w1 = (0.7 * randn({32, 2}, rng)).set_requires_grad(), b1 = zeros({32}).set_requires_grad();
  const Tensor w2 = (0.2 * randn({1, 32}, rng)).set_requires_grad(), b2 = zeros({1}).set_requires_grad();
  const NamedTensors params = {{"w1", w1}, {"b1", b1}, {"w2", w2}, {"b2", b2}};
  AdamW adam(params, {});

  const Tensor x = rand_uniform({256, 2}, -1, 1, rng);
  const Tensor target = sin(3.0 * x.slice(1, 0, 1)) * x.slice(1, 1, 2);
  double first = 0, last = 0;
  for (int step = 0; step < 300; ++step) {
    const Tensor loss = mean(square(linear(silu(linear(x, w1, b1)), w2, b2) - target));
    zero_grad(params);
    backward(loss);
    adam.step(0.01);
    last = loss.item();
    if (step == 0) first = last;
  }
  std::printf("%g %g\n", first, last);
}
