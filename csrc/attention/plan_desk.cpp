// SPDX-License-Identifier: Apache-2.0
#include "attention/plan.h"

#include <string>
#include <utility>

#include "core/layout.h"

namespace fastdiff::attention {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 30;

int64_t blocks(int64_t items, int64_t block) {
  return (items + block - 1) / block;
}

void check_device(const char* op, const char* argument, const TensorView& t, Device device) {
  if (t.device != device)
    refuse(op, argument, " must be on ", device_text(device), " like q, got ", device_text(t.device));
}

void check_integers(const char* op, const char* argument, const TensorView& t, Device device) {
  check_device(op, argument, t, device);
  if (t.dtype != DType::i32) refuse(op, argument, " must be int32, got ", name(t.dtype));
  if (!is_contiguous(t)) refuse(op, argument, " must be contiguous");
}

// Every entry of every list, on the CPU.
void check_lists(const char* op, const Plan& plan, const TensorView& offsets) {
  const int64_t lists = offsets.sizes[0] * offsets.sizes[1];
  for (int64_t list = 0; list < lists; ++list) {
    const int32_t* row = plan.offsets + list * (plan.rows + 1);
    for (int r = 0; r < plan.rows; ++r) {
      if (row[r] < 0 || row[r] > row[r + 1] || row[r + 1] > plan.entries)
        refuse(op, "offsets must ascend from 0 to at most ", plan.entries, ", got ", row[r], " and then ",
               row[r + 1], " in list ", list, ", row ", r);
      for (int e = row[r]; e < row[r + 1]; ++e) {
        if (plan.columns[e] < 0 || plan.columns[e] >= plan.key_blocks)
          refuse(op, "columns must be within 0 and ", plan.key_blocks - 1, ", got ", plan.columns[e],
                 " at entry ", e);
        if (e > row[r] && plan.columns[e] <= plan.columns[e - 1])
          refuse(op, "columns must ascend within a row, got ", plan.columns[e - 1], " and then ",
                 plan.columns[e], " at entry ", e);
        if (plan.masks != nullptr && (plan.masks[e] < -1 || plan.masks[e] >= plan.mask_count))
          refuse(op, "masks must be within -1 and ", plan.mask_count - 1, ", got ", plan.masks[e],
                 " at entry ", e);
      }
    }
  }
}

// The number of tokens.
int64_t check_index(const char* op, const char* argument, const std::optional<TensorView>& index,
                    const TensorView& t) {
  const int64_t tokens = t.sizes[2];
  if (!index) return tokens;
  check_device(op, argument, *index, t.device);
  if (index->dtype != DType::i64) refuse(op, argument, " must be int64, got ", name(index->dtype));
  if (index->rank != 2 || (index->sizes[0] != 1 && index->sizes[0] != t.sizes[0]))
    refuse(op, argument, " must have shape [", t.sizes[0], " or 1, M], got ", shape_text(*index));
  if (index->sizes[1] > kMaxTokens)
    refuse(op, argument, " must have at most 2^30 tokens, got ", index->sizes[1]);
  if (tokens == 0 && index->numel() > 0) refuse(op, argument, " must be empty where there are no tokens");
  if (t.device.type == DeviceType::cpu) {
    const auto* const numbers = static_cast<const int64_t*>(index->data);
    for (int64_t b = 0; b < index->sizes[0]; ++b)
      for (int64_t n = 0; n < index->sizes[1]; ++n)
        if (const int64_t token = numbers[b * index->strides[0] + n * index->strides[1]];
            token < 0 || token >= tokens)
          refuse(op, argument, " must be within 0 and ", tokens - 1, ", got ", token, " at place ", n);
  }
  return index->sizes[1];
}

void check_heads_tensor(const char* op, const char* argument, const TensorView& t, const TensorView& q) {
  check_device(op, argument, t, q.device);
  if (!is_real_float(t.dtype))
    refuse(op, argument, " must be float32, float16, bfloat16 or float64, got ", name(t.dtype));
  if (t.dtype != q.dtype) refuse(op, argument, " must be ", name(q.dtype), " like q, got ", name(t.dtype));
  if (t.rank != 4) refuse(op, argument, " must have 4 dimensions [B, H, N, D], got ", shape_text(t));
}

}  // namespace

void check_block(const char* op, const char* argument, int64_t block) {
  if (block < 16 || block > kMaxBlock || block % 16 != 0)
    refuse(op, argument, " must be a multiple of 16 from 16 to ", kMaxBlock, ", got ", block);
}

Extent check_tokens(const char* op, const Tokens& tokens) {
  const TensorView &q = tokens.q, &k = tokens.k, &v = tokens.v;
  check_heads_tensor(op, "q", q, q);
  check_heads_tensor(op, "k", k, q);
  check_heads_tensor(op, "v", v, q);
  const int64_t d = q.sizes[3];
  if (d < 8 || d > kMaxHeadDim || d % 8 != 0)
    refuse(op, "q must have a head_dim that is a multiple of 8 from 8 to ", kMaxHeadDim, ", got ", d);
  if (k.sizes[0] != q.sizes[0] || k.sizes[3] != d)
    refuse(op, "k must have shape [", q.sizes[0], ", H, N, ", d, "] to go with q, got ", shape_text(k));
  if (k.sizes[1] == 0 ? q.sizes[1] != 0 : q.sizes[1] % k.sizes[1] != 0)
    refuse(op, "k must have a number of heads that divides q's ", q.sizes[1], ", got ", k.sizes[1]);
  if (!std::equal(k.sizes, k.sizes + 4, v.sizes))
    refuse(op, "v must have shape ", shape_text(k), " like k, got ", shape_text(v));
  for (const TensorView* t : {&q, &k})
    if (t->sizes[2] > kMaxTokens)
      refuse(op, t == &q ? "q" : "k", " must have at most 2^30 tokens, got ", t->sizes[2]);
  return {q.sizes[0],
          q.sizes[1],
          k.sizes[1],
          check_index(op, "q_index", tokens.q_index, q),
          check_index(op, "kv_index", tokens.kv_index, k),
          static_cast<int>(d)};
}

// NOTE: strides are of no use here, but an empty result wants some.
Gathered::Gathered(const TensorView& like, int64_t tokens)
    : sizes_{like.sizes[0], like.sizes[1], tokens, like.sizes[3]},
      view_{nullptr, like.dtype, 4, sizes_, like.strides, like.device} {}

void check_like(const char* op, const char* argument, const TensorView& t, const char* like_name,
                const TensorView& like) {
  check_device(op, argument, t, like.device);
  if (t.dtype != like.dtype)
    refuse(op, argument, " must be ", name(like.dtype), " like ", like_name, ", got ", name(t.dtype));
  if (t.rank != like.rank || !std::equal(t.sizes, t.sizes + t.rank, like.sizes))
    refuse(op, argument, " must have shape ", shape_text(like), " like ", like_name, ", got ", shape_text(t));
}

void check_result(const char* op, const char* argument, const TensorView& t, const TensorView& want) {
  if (t.device != want.device)
    refuse(op, argument, " must be on ", device_text(want.device), ", got ", device_text(t.device));
  if (t.dtype != want.dtype) refuse(op, argument, " must be ", name(want.dtype), ", got ", name(t.dtype));
  if (t.rank != want.rank || !std::equal(t.sizes, t.sizes + t.rank, want.sizes))
    refuse(op, argument, " must have shape ", shape_text(want), ", got ", shape_text(t));
}

LseShape::LseShape(const TensorView& q, size_t sets) {
  const int rank = sets > 1 ? 4 : 3;
  sizes_[0] = static_cast<int64_t>(sets);
  std::copy(q.sizes, q.sizes + 3, sizes_ + rank - 3);
  view_ = {nullptr, q.dtype == DType::f64 ? DType::f64 : DType::f32, rank, sizes_, sizes_, q.device};
}

void check_lse(const char* op, const char* argument, const TensorView& lse, const LseShape& shape) {
  check_result(op, argument, lse, shape.view());
}

namespace {

void lay_out_sets(const char* op, const PlanArguments& a, const Extent& extent, Plan& plan) {
  const std::vector<int64_t> one{extent.keys};
  const std::vector<int64_t>& sets = a.sets.empty() ? one : a.sets;
  if (sets.size() > kMaxSets) refuse(op, "sets must be at most ", kMaxSets, ", got ", sets.size());
  plan.sets = static_cast<int>(sets.size());
  int64_t total = 0;
  for (int s = 0; s < plan.sets; ++s) {
    if (sets[s] < 0 || sets[s] > extent.keys)
      refuse(op, "sets must be within 0 and the ", extent.keys, " keys, got ", sets[s]);
    total += sets[s];
    plan.set_keys[s + 1] = static_cast<int>(std::min(total, extent.keys));
    plan.set_blocks[s + 1] = plan.set_blocks[s] + static_cast<int>(blocks(sets[s], a.block_k));
  }
  if (total != extent.keys)
    refuse(op, "sets must have ", extent.keys, " keys together, as k has, got ", total);
  plan.key_blocks = plan.set_blocks[plan.sets];
}

}  // namespace

Plan check_plan(const char* op, const PlanArguments& a, const Extent& extent, Device device) {
  check_block(op, "block_q", a.block_q);
  check_block(op, "block_k", a.block_k);
  check_integers(op, "offsets", a.offsets, device);
  check_integers(op, "columns", a.columns, device);
  Plan plan;
  plan.block_q = static_cast<int>(a.block_q);
  plan.block_k = static_cast<int>(a.block_k);
  plan.rows = static_cast<int>(blocks(extent.queries, a.block_q));
  lay_out_sets(op, a, extent, plan);
  plan.words = static_cast<int>(blocks(a.block_q, 32));
  const TensorView& o = a.offsets;
  const bool fits = o.rank == 3 && (o.sizes[0] == 1 || o.sizes[0] == extent.samples) &&
                    (o.sizes[1] == 1 || o.sizes[1] == extent.heads) && o.sizes[2] == plan.rows + 1;
  if (!fits)
    refuse(op, "offsets must have shape [", extent.samples, " or 1, ", extent.heads, " or 1, ", plan.rows + 1,
           "] (", extent.queries, " queries in blocks of ", a.block_q, "), got ", shape_text(o));
  if (a.columns.rank != 1) refuse(op, "columns must have one dimension, got ", shape_text(a.columns));
  if (a.masks.has_value() != a.bits.has_value())
    refuse(op, "masks and bits must be given together, got ", a.masks ? "masks" : "bits", " alone");
  plan.offsets = static_cast<const int32_t*>(o.data);
  plan.sample_stride = o.sizes[0] == 1 ? 0 : o.sizes[1] * o.sizes[2];
  plan.head_stride = o.sizes[1] == 1 ? 0 : o.sizes[2];
  plan.columns = static_cast<const int32_t*>(a.columns.data);
  plan.entries = a.columns.sizes[0];
  if (a.masks) {
    check_integers(op, "masks", *a.masks, device);
    check_integers(op, "bits", *a.bits, device);
    if (a.masks->rank != 1 || a.masks->sizes[0] != plan.entries)
      refuse(op, "masks must have shape ", shape_text(a.columns), " like columns, got ",
             shape_text(*a.masks));
    if (a.bits->rank != 3 || a.bits->sizes[1] != plan.block_k || a.bits->sizes[2] != plan.words)
      refuse(op, "bits must have shape [M, ", plan.block_k, ", ", plan.words, "], got ", shape_text(*a.bits));
    plan.masks = static_cast<const int32_t*>(a.masks->data);
    plan.bits = static_cast<const uint32_t*>(a.bits->data);
    plan.mask_count = a.bits->sizes[0];
  }
  if (device.type == DeviceType::cpu) check_lists(op, plan, o);
  return plan;
}

namespace {

Codes check_codes(const char* op, const char* argument, const std::optional<TensorView>& codes,
                  const TensorView& t, const std::optional<TensorView>& index) {
  if (!codes) refuse(op, argument, " must be given where the other code is");
  check_device(op, argument, *codes, t.device);
  if (codes->dtype != DType::i64) refuse(op, argument, " must be int64, got ", name(codes->dtype));
  const bool fits = codes->rank == 2 && (codes->sizes[0] == 1 || codes->sizes[0] == t.sizes[0]) &&
                    codes->sizes[1] == t.sizes[2];
  if (!fits)
    refuse(op, argument, " must have shape [", t.sizes[0], " or 1, ", t.sizes[2], "], got ",
           shape_text(*codes));
  const Heads heads = heads_of(t, index);
  return {static_cast<const int64_t*>(codes->data),
          codes->sizes[0] == 1 ? 0 : codes->strides[0],
          codes->strides[1],
          heads.tokens,
          heads.index,
          heads.index_sample,
          heads.index_step};
}

// The lowest and the highest of a sample, on the CPU.
std::pair<int64_t, int64_t> bounds_of(const Codes& codes, int64_t sample) {
  std::pair<int64_t, int64_t> bounds{codes.data[sample * codes.sample], codes.data[sample * codes.sample]};
  for (int64_t n = 1; n < codes.tokens; ++n) {
    const int64_t code = codes.data[sample * codes.sample + n * codes.step];
    bounds = {std::min(bounds.first, code), std::max(bounds.second, code)};
  }
  return bounds;
}

void check_entries(const char* op, const PairBias& bias, const Extent& extent) {
  if (bias.q_code.tokens == 0 || bias.k_code.tokens == 0) return;
  for (int64_t b = 0; b < extent.samples; ++b) {
    const auto q = bounds_of(bias.q_code, b), k = bounds_of(bias.k_code, b);
    const uint64_t most = static_cast<uint64_t>(q.second) - static_cast<uint64_t>(k.first);  // of any size
    if (q.first < k.second || most >= static_cast<uint64_t>(bias.entries))
      refuse(op, "q_code - k_code must be within 0 and ", bias.entries - 1, ", got ", q.first, " to ",
             q.second, " and ", k.first, " to ", k.second, " in sample ", b);
  }
}

}  // namespace

PairBias check_bias(const char* op, const BiasArguments& a, const Extent& extent, const Tokens& tokens) {
  const bool by_code = a.q_code || a.k_code;
  if (!a.bias && by_code) refuse(op, "bias must be a table where q_code and k_code are given, got none");
  if (!a.bias) return {};
  const TensorView& bias = *a.bias;
  const Device device = tokens.q.device;
  check_device(op, "bias", bias, device);
  if (!is_real_float(bias.dtype))
    refuse(op, "bias must be float32, float16, bfloat16 or float64, got ", name(bias.dtype));
  const int64_t entries = bias.rank == 4 ? bias.sizes[3] : 0;
  const int64_t whole[] = {extent.samples, extent.heads, by_code ? 1 : extent.queries,
                           by_code ? std::max(int64_t{1}, entries) : extent.keys};
  bool fits = bias.rank == 4;
  for (int d = 0; fits && d < 4; ++d) fits = bias.sizes[d] == 1 || bias.sizes[d] == whole[d];
  if (!fits)
    refuse(op, "bias must have shape [", whole[0], " or 1, ", whole[1], " or 1, ", whole[2], " or 1, ",
           by_code ? "entries" : std::to_string(whole[3]) + " or 1", "], got ", shape_text(bias));
  const auto stride = [&bias](int d) { return bias.sizes[d] == 1 ? int64_t{0} : bias.strides[d]; };
  PairBias checked{{bias.data, bias.dtype, stride(0), stride(1), stride(2), stride(3)}, {}, {}, 0};
  if (!by_code) return checked;
  checked.q_code = check_codes(op, "q_code", a.q_code, tokens.q, tokens.q_index);
  checked.k_code = check_codes(op, "k_code", a.k_code, tokens.k, tokens.kv_index);
  checked.entries = entries;
  if (device.type == DeviceType::cpu) check_entries(op, checked, extent);
  return checked;
}

std::vector<Named> inputs_of(const PlanArguments& plan, const Tokens& tokens, const BiasArguments& bias,
                             std::vector<Named> others) {
  const auto optional = [](const std::optional<TensorView>& t) { return t ? &*t : nullptr; };
  others.insert(others.end(), {{"bias", optional(bias.bias)},
                               {"q_code", optional(bias.q_code)},
                               {"k_code", optional(bias.k_code)},
                               {"q", &tokens.q},
                               {"k", &tokens.k},
                               {"v", &tokens.v},
                               {"q_index", optional(tokens.q_index)},
                               {"kv_index", optional(tokens.kv_index)},
                               {"offsets", &plan.offsets},
                               {"columns", &plan.columns},
                               {"masks", optional(plan.masks)},
                               {"bits", optional(plan.bits)}});
  return others;
}

void check_results(const char* op, const std::vector<Named>& results, const std::vector<Named>& inputs) {
  for (size_t n = 0; n < results.size(); ++n) {
    const TensorView& t = *results[n].view;
    if (!elements_are_distinct(t))
      refuse(op, results[n].name, " must not have elements that share memory (expanded?)");
    const auto apart = [&](const Named& other) {
      if (other.view != nullptr && overlap(t, *other.view) != Overlap::none)
        refuse(op, results[n].name, " must not share memory with ", other.name);
    };
    std::for_each(inputs.begin(), inputs.end(), apart);
    std::for_each(results.begin(), results.begin() + static_cast<std::ptrdiff_t>(n), apart);
  }
}

Heads heads_of(const TensorView& t, const std::optional<TensorView>& index) {
  Heads heads{t.data, t.dtype, t.strides[0], t.strides[1], t.strides[2], t.strides[3], t.sizes[2]};
  if (index) {
    heads.index = static_cast<const int64_t*>(index->data);
    heads.index_sample = index->sizes[0] == 1 ? 0 : index->strides[0];
    heads.index_step = index->strides[1];
  }
  return heads;
}

Scores lse_of(const TensorView& t) {
  const int64_t* const strides = t.strides + t.rank - 3;
  return {t.data, t.dtype, strides[0], strides[1], strides[2], 0};
}

}  // namespace fastdiff::attention
