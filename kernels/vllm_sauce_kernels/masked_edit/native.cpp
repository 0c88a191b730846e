// SPDX-License-Identifier: Apache-2.0
//
// The op for few tokens on a CPU: one loop on one core, called without Python.
//
// Boxed, because Python and compiled graphs call ops with a stack of arguments: what is
// not for the loop goes on to the Python form as it came. Arguments, maths: __init__.py.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#include <vector>

namespace {

// Most row elements worth one core, whatever others there are,
constexpr int64_t kMaxElements = int64_t{1} << 21;
// and times the cores that matrix products would have; beyond it, those win,
constexpr int64_t kMaxElementsTimesCores = int64_t{1} << 25;
// but only where a product has this many tokens: each mask is a product of its own.
constexpr int64_t kTokensPerMask = 16;
constexpr float kEps = 1e-5f;  // what SAELens adds to the standard deviation

// The bits of a bfloat16, so that the compiler sees plain integers and vectorises.
using bf16 = uint16_t;

inline float widen(float value) { return value; }
inline float widen(bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

template <typename T>
inline T narrow(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    const uint32_t raw = std::bit_cast<uint32_t>(value);
    const uint32_t odd = (raw >> 16) & 1;
    const uint32_t rounded = (raw + 0x7FFF + odd) >> 16;  // to nearest, ties to even
    return static_cast<bf16>(value != value ? 0x7FC0 : rounded);
  }
}

struct Rows {
  void* data;
  int64_t stride;
  template <typename T>
  T* row(int64_t index) const {
    return static_cast<T*>(data) + index * stride;
  }
};

struct Call {
  Rows hidden, residual, W_enc, W_dec;
  const int32_t *slots, *latents, *lens;
  const float *scale, *shift, *gate, *b_enc;
  int64_t* counts;
  int64_t num_tokens, d_model, num_slots, max_latents, num_rows, normalize;
  bool bf16_stream, bf16_pool;
};

struct Scratch {
  std::vector<float> x, edited, coefficients;
  std::vector<int32_t> fired;
};

// Normalises x in place; returns the scale of what is decoded.
float norm(float* __restrict x, int64_t d_model, int64_t normalize) {
  if (normalize == 0) return 1.0f;
  float mean = 0.0f;
  if (normalize == 1) {
#pragma omp simd reduction(+ : mean)
    for (int64_t d = 0; d < d_model; ++d) mean += x[d];
    mean /= static_cast<float>(d_model);
  }
  float square = 0.0f;
#pragma omp simd reduction(+ : square)
  for (int64_t d = 0; d < d_model; ++d) {
    x[d] -= mean;
    square += x[d] * x[d];
  }
  const int64_t count = normalize == 1 ? d_model - 1 : d_model;
  const float out = std::sqrt(square / static_cast<float>(count));
  const float divisor = normalize == 1 ? out + kEps : out;
#pragma omp simd
  for (int64_t d = 0; d < d_model; ++d) x[d] /= divisor;
  return out;
}

// Four rows at a time: one sum alone would wait for each of its additions.
constexpr int32_t kBlock = 4;

template <typename P>
void dots(
    const P* const* rows, const float* __restrict x, int64_t d_model, float* totals) {
  const P *__restrict r0 = rows[0], *__restrict r1 = rows[1];
  const P *__restrict r2 = rows[2], *__restrict r3 = rows[3];
  float t0 = 0.0f, t1 = 0.0f, t2 = 0.0f, t3 = 0.0f;
#pragma omp simd reduction(+ : t0, t1, t2, t3)
  for (int64_t d = 0; d < d_model; ++d) {
    t0 += widen(r0[d]) * x[d];
    t1 += widen(r1[d]) * x[d];
    t2 += widen(r2[d]) * x[d];
    t3 += widen(r3[d]) * x[d];
  }
  totals[0] = t0, totals[1] = t1, totals[2] = t2, totals[3] = t3;
}

template <typename P>
void add_rows(
    const P* const* rows, const float* by, int64_t d_model, float* __restrict edited) {
  const P *__restrict r0 = rows[0], *__restrict r1 = rows[1];
  const P *__restrict r2 = rows[2], *__restrict r3 = rows[3];
  const float c0 = by[0], c1 = by[1], c2 = by[2], c3 = by[3];
#pragma omp simd
  for (int64_t d = 0; d < d_model; ++d)
    edited[d] += c0 * widen(r0[d]) + c1 * widen(r1[d]) + c2 * widen(r2[d]) +
        c3 * widen(r3[d]);
}

template <typename P>
void add_row(
    const P* __restrict row, float by, int64_t d_model, float* __restrict edited) {
#pragma omp simd
  for (int64_t d = 0; d < d_model; ++d) edited[d] += by * widen(row[d]);
}

// Starts loading a row: it lies anywhere in the pool, where no hardware looks ahead.
template <typename P>
inline void prefetch(const P* row, int64_t d_model) {
  constexpr int64_t line = 64 / sizeof(P);
  for (int64_t d = 0; d < d_model; d += line) __builtin_prefetch(row + d);
}

// Lists the latents that fire on x and what their decoder rows are multiplied with.
template <typename P>
int32_t fire(const Call& call, int32_t slot, float out, Scratch& scratch) {
  const int64_t first = slot * call.max_latents;
  const int32_t* latents = call.latents + first;
  const int32_t num_latents = call.lens[slot];
  int32_t num_fired = 0;
  for (int32_t start = 0; start < num_latents; start += kBlock) {
    const int32_t count = std::min(kBlock, num_latents - start);
    const P* rows[kBlock];
    float totals[kBlock];
    // The last block is filled up with a row of its own.
    for (int32_t k = 0; k < kBlock; ++k)
      rows[k] = call.W_enc.row<const P>(latents[start + (k < count ? k : 0)]);
    dots(rows, scratch.x.data(), call.d_model, totals);
    for (int32_t k = 0; k < count; ++k) {
      const int64_t at = first + start + k;
      const int32_t row = call.latents[at];
      const float pre = totals[k] + call.b_enc[row];
      if (!(pre > call.gate[at])) continue;
      prefetch(call.W_dec.row<const P>(row), call.d_model);
      scratch.fired[num_fired] = row;
      scratch.coefficients[num_fired++] = out * (call.scale[at] * pre + call.shift[at]);
    }
  }
  return num_fired;
}

template <typename S, typename P>
void edit_token(const Call& call, int64_t token, int32_t slot, Scratch& scratch) {
  const int64_t d_model = call.d_model;
  S* __restrict hidden = call.hidden.row<S>(token);
  float* __restrict x = scratch.x.data();
  float* __restrict edited = scratch.edited.data();
#pragma omp simd
  for (int64_t d = 0; d < d_model; ++d) x[d] = edited[d] = widen(hidden[d]);
  if (call.residual.data != nullptr) {
    const S* __restrict residual = call.residual.row<S>(token);
#pragma omp simd
    for (int64_t d = 0; d < d_model; ++d) x[d] += widen(residual[d]);
  }
  const float out = norm(x, d_model, call.normalize);
  // All coefficients before any write.
  const int32_t num_fired = fire<P>(call, slot, out, scratch);
  if (num_fired == 0) return;
  int32_t j = 0;
  for (; j + kBlock <= num_fired; j += kBlock) {
    const P* rows[kBlock];
    for (int32_t k = 0; k < kBlock; ++k)
      rows[k] = call.W_dec.row<const P>(scratch.fired[j + k]);
    add_rows(rows, &scratch.coefficients[j], d_model, edited);
  }
  for (; j < num_fired; ++j)
    add_row(
        call.W_dec.row<const P>(scratch.fired[j]), scratch.coefficients[j], d_model,
        edited);
#pragma omp simd
  for (int64_t d = 0; d < d_model; ++d) hidden[d] = narrow<S>(edited[d]);
}

template <typename S, typename P>
void edit_tokens(const Call& call) {
  thread_local Scratch scratch;
  // Allocates only where a call needs more than all before it.
  scratch.x.resize(call.d_model);
  scratch.edited.resize(call.d_model);
  scratch.fired.resize(call.max_latents);
  scratch.coefficients.resize(call.max_latents);
  for (int64_t token = 0; token < call.num_tokens; ++token) {
    const int32_t slot = call.slots[token];
    if (slot < 0 || call.lens[slot] == 0) continue;
    call.counts[slot] += 1;
    edit_token<S, P>(call, token, slot, scratch);
  }
}

// Whether the loop is the fastest form, and no number leads outside a table.
bool fits(const Call& call) {
  static thread_local std::vector<char> seen;
  seen.assign(call.num_slots, 0);
  const auto num_rows = static_cast<uint32_t>(call.num_rows);
  int64_t rows = 0, tokens = 0, masks = 0;
  for (int64_t token = 0; token < call.num_tokens; ++token) {
    const int32_t slot = call.slots[token];
    if (slot < 0) continue;
    if (slot >= call.num_slots) return false;
    const int32_t num_latents = call.lens[slot];
    if (num_latents < 0 || num_latents > call.max_latents) return false;
    rows += num_latents, tokens += 1;
    if (seen[slot]) continue;
    seen[slot] = 1, masks += 1;
    const int32_t* latents = call.latents + slot * call.max_latents;
    bool outside = false;
    for (int32_t j = 0; j < num_latents; ++j)
      outside |= static_cast<uint32_t>(latents[j]) >= num_rows;
    if (outside) return false;
  }
  const int64_t elements = rows * call.d_model;
  return elements <= kMaxElements || tokens < kTokensPerMask * masks ||
      elements * at::get_num_threads() <= kMaxElementsTimesCores;
}

bool strided(const at::Tensor& tensor) {
  return tensor.defined() && tensor.is_cpu() && tensor.layout() == at::kStrided;
}

template <typename T>
bool take_flat(const at::Tensor& tensor, at::IntArrayRef sizes, T*& data) {
  using Plain = std::remove_const_t<T>;
  if (!strided(tensor) || tensor.scalar_type() != c10::CppTypeToScalarType<Plain>::value ||
      tensor.sizes() != sizes || !tensor.is_contiguous())
    return false;
  data = static_cast<T*>(tensor.data_ptr());
  return true;
}

bool take_rows(const at::Tensor& tensor, int64_t num_rows, int64_t d_model, Rows& rows) {
  if (!strided(tensor) || tensor.dim() != 2 || tensor.size(0) != num_rows ||
      tensor.size(1) != d_model || (d_model > 1 && tensor.stride(1) != 1))
    return false;
  rows = {tensor.data_ptr(), tensor.stride(0)};
  return true;
}

bool known(const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16;
}

// Reads the arguments; false leaves the call, and what is wrong with it, to Python.
bool take(c10::ArrayRef<c10::IValue> args, Call& call) {
  if (args[12].toInt() != 0) return false;  // TopK
  call.normalize = args[13].toInt();
  if (call.normalize < 0 || call.normalize > 2) return false;
  const auto& hidden = args[0].toTensor();
  const auto& latents = args[3].toTensor();
  const auto& W_enc = args[8].toTensor();
  const auto& W_dec = args[9].toTensor();
  const auto& slots = args[2].toTensor();
  if (hidden.dim() != 2 || latents.dim() != 2 || W_enc.dim() != 2 || slots.dim() != 1)
    return false;
  call.num_tokens = hidden.size(0), call.d_model = hidden.size(1);
  call.num_slots = latents.size(0), call.max_latents = latents.size(1);
  call.num_rows = W_enc.size(0);
  call.bf16_stream = hidden.scalar_type() == at::kBFloat16;
  call.bf16_pool = W_enc.scalar_type() == at::kBFloat16;
  if (!known(hidden) || !known(W_enc) || W_dec.scalar_type() != W_enc.scalar_type() ||
      slots.size(0) < call.num_tokens)
    return false;
  call.residual = {nullptr, 0};
  if (args[1].isTensor()) {
    const auto& residual = args[1].toTensor();
    if (residual.scalar_type() != hidden.scalar_type() ||
        !take_rows(residual, call.num_tokens, call.d_model, call.residual))
      return false;
  }
  const int64_t table[] = {call.num_slots, call.max_latents};
  return take_rows(hidden, call.num_tokens, call.d_model, call.hidden) &&
      take_rows(W_enc, call.num_rows, call.d_model, call.W_enc) &&
      take_rows(W_dec, call.num_rows, call.d_model, call.W_dec) &&
      take_flat(slots, slots.sizes(), call.slots) &&
      take_flat(latents, table, call.latents) &&
      take_flat(args[4].toTensor(), table, call.scale) &&
      take_flat(args[5].toTensor(), table, call.shift) &&
      take_flat(args[6].toTensor(), table, call.gate) &&
      take_flat(args[7].toTensor(), call.num_slots, call.lens) &&
      take_flat(args[10].toTensor(), call.num_rows, call.b_enc) &&
      take_flat(args[11].toTensor(), call.num_slots, call.counts) && fits(call);
}

void masked_edit(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t num_args = op.schema().arguments().size();
  Call call;
  const bool mine = std::getenv("VLLM_SAUCE_KERNEL") == nullptr &&
      take(torch::jit::last(*stack, num_args), call);
  if (!mine) {
    // Where dispatch.py registers the Python form.
    op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack);
    return;
  }
  if (call.bf16_stream)
    call.bf16_pool ? edit_tokens<bf16, bf16>(call) : edit_tokens<bf16, float>(call);
  else
    call.bf16_pool ? edit_tokens<float, bf16>(call) : edit_tokens<float, float>(call);
  torch::jit::drop(*stack, num_args);
}

}  // namespace

TORCH_LIBRARY_IMPL(vllm_sauce, CPU, m) {
  m.impl("masked_edit", torch::CppFunction::makeFromBoxedFunction<&masked_edit>());
}
