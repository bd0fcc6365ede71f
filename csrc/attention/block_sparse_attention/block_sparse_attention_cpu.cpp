// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU, compiled once per ISA.
//
// Work: 4 D multiply-adds per visible pair of tokens, 2 D for the score and 2 D for the sum, and one
// exponential. A block of queries is brought into the cache once, transposed; each block of keys it sees, and
// of values, is read once per strip. Rows of blocks are shared out among threads by the number of blocks they
// see; where there are few of them, parts of rows.
#include "attention/block_sparse_attention/block_sparse_attention_strips.h"

namespace fastdiff::block_sparse_attention {
namespace {

template <class T>
class LaneProducts {
 public:
  static constexpr int kMostRegisters = attention::kMostRegisters;

  LaneProducts(const Params& p, const Room& room, Taker<T>& take) : p_(p), dim_(p.extent.head_dim) {
    queries_ = take(room.queries);
    scores_ = take(room.scores);
    for (T*& block : converted_) block = take(room.keys / 2);
  }

  void leave() {}

  int dim() const { return dim_; }

  void load(const Queries& q, int lanes, T* end) {
    const auto factor = static_cast<T>(p_.scale * kLog2E);
    load_transposed<T>(p_.q, p_.q.rows(q.b, q.h, q.first), q.count, dim_, factor, lanes, queries_);
    if (p_.q_end.data == nullptr) return;
    load_transposed<T>(p_.q_end, p_.q_end.rows(q.b, q.h, q.first), q.count, dim_, factor, lanes, end);
    const auto mix = static_cast<T>(p_.mix);
    for (int64_t n = 0; n < rounded_up(q.count, lanes) * dim_; ++n)
      queries_[n] = fma_(mix, end[n] - queries_[n], queries_[n]);
  }

  void enter(const Queries& q, int, Plan::Block block) {
    const int64_t kv = q.h / (p_.extent.heads / p_.extent.kv_heads);
    keys_ = block.count;
    k_ = rows_of(p_.k, p_.k.rows(q.b, kv, block.first), keys_, dim_, converted_[0]);
    v_ = rows_of(p_.v, p_.v.rows(q.b, kv, block.first), keys_, dim_, converted_[1]);
  }

  template <int kRegisters>
  void attend(int first, const Bias<T>& bias, const Running<T>& running, T* sums) {
    constexpr int lanes = kRegisters * Lanes<T>::width;
    product<Start::zero, Unit::step, kRegisters>(Factor<T>{k_, dim_, 1}, queries_ + int64_t{first} * dim_,
                                                 lanes, dim_, scores_, lanes, keys_);
    softmax_block<kRegisters>(Block<T>{scores_, lanes, keys_}, bias, running);
    product<Start::scaled, Unit::row, kRegisters>(Factor<T>{v_, 1, dim_}, scores_, lanes, keys_, sums, lanes,
                                                  dim_, running.shrink);
  }

  void store(const Queries& q, const T* results, int lanes) { store_strips(p_, q, results, lanes, dim_); }

 private:
  const Params& p_;
  const int dim_;
  T *queries_, *scores_, *converted_[2];
  const T *k_ = nullptr, *v_ = nullptr;
  int keys_ = 0;
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.wide()) {
    run_all<double, LaneProducts<double>>(params, scratch, team);
  } else {
    run_all<float, LaneProducts<float>>(params, scratch, team);
  }
}

}  // namespace fastdiff::block_sparse_attention
