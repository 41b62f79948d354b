// score PACKAGE INPUTS: scores a batch with a compiled model, without Python; prints the probabilities, an output a line.
//
// PACKAGE is an export's model.aoti.pt2. INPUTS is what torch.save wrote of a list of the model's inputs, in their order.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) try {
  TORCH_CHECK(argc == 3, "usage: score PACKAGE INPUTS");
  // Compiled code reads what the sizes say. Told so, it checks types and sizes, but not that the inputs have as many rows.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
  torch::inductor::AOTIModelPackageLoader model(argv[1]);

  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const at::IValue loaded = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> inputs;
  for (const at::IValue& input : loaded.toListRef()) {
    inputs.push_back(input.toTensor().contiguous());
    TORCH_CHECK(inputs.back().size(0) == inputs[0].size(0), "the inputs have different numbers of rows");
  }

  const at::Tensor probabilities = model.run(inputs)[0];  // [outputs, rows] float32
  const auto p = probabilities.accessor<float, 2>();
  for (int64_t output = 0; output < p.size(0); ++output)
    for (int64_t row = 0; row < p.size(1); ++row)
      std::cout << p[output][row] << (row + 1 < p.size(1) ? ' ' : '\n');
} catch (const c10::Error& error) {
  std::cerr << error.what_without_backtrace() << "\n";
  return 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
