// Runs the list of tensor operations that graph.py writes. A tensor is {shape, data}: its sizes, and a Float32Array
// in row-major order; classes and truth values are numbers too. Sums are taken in double precision.
// The table at the end is the one list of what there is: graph.py reads the names off it.
"use strict";

const interpreter = (() => {
  const size = (shape) => shape.reduce((product, length) => product * length, 1);
  const tensor = (shape, data) => ({ shape, data: data ?? new Float32Array(size(shape)) });
  const at = (dim, rank) => (dim < 0 ? dim + rank : dim);

  function strides(shape) {
    const steps = new Array(shape.length);
    for (let i = shape.length - 1, step = 1; i >= 0; step *= shape[i--]) steps[i] = step;
    return steps;
  }

  // The elements of `from` that stand at `offset` and every index of `shape` with these steps: any view, written out.
  function gathered(from, shape, steps, offset = 0) {
    const result = tensor(shape);
    const index = new Array(shape.length).fill(0);
    for (let i = 0, place = offset; i < result.data.length; i++) {
      result.data[i] = from.data[place];
      for (let dim = shape.length - 1; dim >= 0; dim--) {
        place += steps[dim];
        if (++index[dim] < shape[dim]) break;
        place -= steps[dim] * shape[dim];
        index[dim] = 0;
      }
    }
    return result;
  }

  function expand(from, shape) {
    const lead = shape.length - from.shape.length;
    const own = strides(from.shape);
    const full = shape.map((length, i) => (length === -1 ? from.shape[i - lead] : length));
    if (lead === 0 && full.every((length, i) => length === from.shape[i])) return from;
    return gathered(from, full, full.map((_, i) => (i < lead || from.shape[i - lead] === 1 ? 0 : own[i - lead])));
  }

  function common(shapes) {
    const rank = Math.max(...shapes.map((shape) => shape.length));
    const length = (shape, i) => shape[i - rank + shape.length] ?? 1;
    return Array.from({ length: rank }, (_, i) => shapes.map((shape) => length(shape, i)).find((n) => n !== 1) ?? 1);
  }

  const lifted = (value) => (typeof value === "object" ? value : tensor([], Float32Array.of(Number(value))));

  // An operation on each element, of tensors and numbers that broadcast.
  const each = (f) => (...args) => {
    const tensors = args.map(lifted);
    const shape = common(tensors.map((t) => t.shape));
    const [a, b, c] = tensors.map((t) => expand(t, shape).data);
    const result = tensor(shape);
    for (let i = 0; i < result.data.length; i++) result.data[i] = f(a[i], b?.[i], c?.[i]);
    return result;
  };
  const unary = (f) => (x) => tensor(x.shape, x.data.map((value) => f(value)));
  const test = (f) => each((a, b) => (f(a, b) ? 1 : 0));

  // A reduction over some dims: `f` makes a number of the elements, a Float32Array.
  function reduced(x, dims, keep, f) {
    const rank = x.shape.length;
    const over = new Set((dims == null || dims.length === 0 ? x.shape.map((_, i) => i) : dims).map((d) => at(d, rank)));
    const kept = x.shape.map((_, i) => i).filter((i) => !over.has(i));
    const parts = permuted(x, [...kept, ...over]);
    const length = size([...over].map((i) => x.shape[i]));
    const result = tensor(keep ? x.shape.map((n, i) => (over.has(i) ? 1 : n)) : kept.map((i) => x.shape[i]));
    for (let i = 0; i < result.data.length; i++) result.data[i] = f(parts.data.subarray(i * length, (i + 1) * length));
    return result;
  }

  // The variance, its divisor less by `correction`, by default 1.
  function variance(row, correction) {
    const mean = sum(row) / row.length;
    return row.reduce((total, value) => total + (value - mean) ** 2, 0) / Math.max(0, row.length - (correction ?? 1));
  }

  const sum = (row) => row.reduce((total, value) => total + value, 0);
  const most = (row) => row.reduce((a, b) => Math.max(a, b), -Infinity);

  function permuted(x, dims) {
    const steps = strides(x.shape);
    return gathered(x, dims.map((d) => x.shape[at(d, x.shape.length)]), dims.map((d) => steps[at(d, x.shape.length)]));
  }

  function reshaped(x, shape) {
    const known = shape.reduce((product, length) => (length === -1 ? product : product * length), 1);
    return tensor(shape.map((length) => (length === -1 ? x.data.length / known : length)), x.data);
  }

  function slice(x, dim = 0, start = 0, end = null, step = 1) {
    const d = at(dim, x.shape.length);
    const within = (i) => Math.min(Math.max(i < 0 ? i + x.shape[d] : i, 0), x.shape[d]);
    const first = within(start ?? 0);
    const shape = [...x.shape];
    shape[d] = Math.max(0, Math.ceil((within(end ?? x.shape[d]) - first) / step));
    const steps = strides(x.shape);
    return gathered(x, shape, steps.map((s, i) => (i === d ? s * step : s)), first * steps[d]);
  }

  function select(x, dim, index) {
    const d = at(dim, x.shape.length);
    const part = slice(x, d, at(index, x.shape[d]), at(index, x.shape[d]) + 1);
    return tensor(part.shape.filter((_, i) => i !== d), part.data);
  }

  function unsqueeze(x, dim) {
    const d = at(dim, x.shape.length + 1);
    return tensor([...x.shape.slice(0, d), 1, ...x.shape.slice(d)], x.data);
  }

  function squeeze(x, dims) {
    const drop = new Set(dims.map((d) => at(d, x.shape.length)));
    return tensor(x.shape.filter((length, i) => !(drop.has(i) && length === 1)), x.data);
  }

  function cat(tensors, dim = 0) {
    const parts = tensors.filter((t) => !(t.shape.length === 1 && t.shape[0] === 0));
    const d = at(dim, parts[0].shape.length);
    const inner = size(parts[0].shape.slice(d + 1));
    const shape = [...parts[0].shape];
    shape[d] = parts.reduce((total, t) => total + t.shape[d], 0);
    const result = tensor(shape);
    let offset = 0;
    for (const part of parts) {
      const length = part.shape[d] * inner;
      for (let i = 0; i * length < part.data.length; i++)
        result.data.set(part.data.subarray(i * length, (i + 1) * length), i * shape[d] * inner + offset);
      offset += length;
    }
    return result;
  }

  function split(x, sizes, dim = 0) {
    let start = 0;
    return sizes.map((length) => slice(x, dim, start, (start += length)));
  }

  function padded(x, pad, value) {
    const rank = x.shape.length;
    const side = (i, which) => pad[2 * (rank - 1 - i) + which] ?? 0;
    const shape = x.shape.map((length, i) => length + side(i, 0) + side(i, 1));
    const result = tensor(shape);
    result.data.fill(value);
    const steps = strides(shape);
    const from = strides(x.shape);
    const inside = x.shape.map((_, i) => [Math.max(0, -side(i, 0)), Math.min(x.shape[i], x.shape[i] + side(i, 1))]);
    for (let i = 0; i < x.data.length; i++) {
      let place = 0;
      let there = true;
      for (let d = 0, rest = i; d < rank; rest %= from[d++]) {
        const index = Math.floor(rest / from[d]);
        there = there && index >= inside[d][0] && index < inside[d][1];
        place += (index + side(d, 0)) * steps[d];
      }
      if (there) result.data[place] = x.data[i];
    }
    return result;
  }

  // Rows of x along a dim, by their numbers: a tensor of any shape.
  function rows(x, dim, index) {
    const d = at(dim, x.shape.length);
    const inner = size(x.shape.slice(d + 1));
    const result = tensor([...x.shape.slice(0, d), ...index.shape, ...x.shape.slice(d + 1)]);
    const outer = size(x.shape.slice(0, d));
    for (let o = 0, place = 0; o < outer; o++)
      for (const i of index.data) {
        const start = (o * x.shape[d] + at(i, x.shape[d])) * inner;
        result.data.set(x.data.subarray(start, start + inner), place);
        place += inner;
      }
    return result;
  }

  function indexed(x, indices) {
    const places = indices.map((index, i) => (index == null ? -1 : i)).filter((i) => i >= 0);
    if (places.length !== 1) throw new Error("index.Tensor is of one dim here");
    return rows(x, places[0], indices[places[0]]);
  }

  function cumulated(x, dim) {
    const d = at(dim, x.shape.length);
    const inner = strides(x.shape)[d];
    const result = tensor(x.shape, x.data.slice());
    for (let i = 0; i < result.data.length; i++)
      if (Math.floor(i / inner) % x.shape[d] > 0) result.data[i] += result.data[i - inner];
    return result;
  }

  // (b, n, m) times (b, m, p).
  function bmm(a, b) {
    const [batch, n, m] = a.shape;
    const p = b.shape[2];
    const result = tensor([batch, n, p]);
    for (let k = 0; k < batch; k++)
      for (let i = 0; i < n; i++) {
        const row = new Float64Array(p);
        for (let j = 0; j < m; j++) {
          const factor = a.data[(k * n + i) * m + j];
          if (factor === 0) continue;
          const start = (k * m + j) * p;
          for (let q = 0; q < p; q++) row[q] += factor * b.data[start + q];
        }
        result.data.set(row, (k * n + i) * p);
      }
    return result;
  }

  function mm(a, b) {
    const result = bmm(unsqueeze(a, 0), unsqueeze(b, 0));
    return tensor(result.shape.slice(1), result.data);
  }

  const scaled = (x, factor) => (factor === 1 ? x : unary((value) => factor * value)(x));
  const add = (a, b, alpha = 1) => each((x, y) => x + alpha * y)(a, b);

  // Convolution of images (n, c, h, w) or of series (n, c, t), transposed or not. Every tap of the kernel that meets
  // the input adds to one output.
  function convolution(x, weight, bias, stride, padding, dilation, transposed, extra, groups) {
    if (x.shape.length === 3) {
      const flat = [x, weight].map((t) => tensor([t.shape[0], t.shape[1], 1, t.shape[2]], t.data));
      const options = [[1, ...stride], [0, ...padding], [1, ...dilation], transposed, [0, ...extra], groups];
      const result = convolution(flat[0], flat[1], bias, ...options);
      return tensor([result.shape[0], result.shape[1], result.shape[3]], result.data);
    }
    const [n, cIn, ...from] = x.shape;
    const kernel = weight.shape.slice(2);
    const perGroup = weight.shape[1];
    const cOut = transposed ? perGroup * groups : weight.shape[0];
    const to = from.map((length, i) => {
      const reach = dilation[i] * (kernel[i] - 1);
      if (transposed) return (length - 1) * stride[i] - 2 * padding[i] + reach + extra[i] + 1;
      return Math.floor((length + 2 * padding[i] - reach - 1) / stride[i]) + 1;
    });
    const result = tensor([n, cOut, ...to]);
    const sums = new Float64Array(to[0] * to[1]);
    // `small` is the grid whose steps are single, `large` the one with the stride: of the input where transposed.
    const [small, large] = transposed ? [from, to] : [to, from];
    const [aIn, aOut] = [cIn / groups, cOut / groups];
    for (let b = 0; b < n; b++)
      for (let o = 0; o < cOut; o++) {
        sums.fill(bias ? bias.data[o] : 0);
        const group = Math.floor(o / aOut);
        for (let i = group * aIn; i < (group + 1) * aIn; i++) {
          const plane = (b * cIn + i) * from[0] * from[1];
          const taps = (transposed ? i * perGroup + (o % aOut) : o * perGroup + (i % aIn)) * kernel[0] * kernel[1];
          for (let u = 0; u < kernel[0]; u++)
            for (let v = 0; v < kernel[1]; v++) {
              const factor = weight.data[taps + u * kernel[1] + v];
              for (let r = 0; r < small[0]; r++) {
                const rowAt = r * stride[0] - padding[0] + u * dilation[0];
                if (rowAt < 0 || rowAt >= large[0]) continue;
                for (let s = 0; s < small[1]; s++) {
                  const columnAt = s * stride[1] - padding[1] + v * dilation[1];
                  if (columnAt < 0 || columnAt >= large[1]) continue;
                  if (transposed) sums[rowAt * to[1] + columnAt] += factor * x.data[plane + r * from[1] + s];
                  else sums[r * to[1] + s] += factor * x.data[plane + rowAt * from[1] + columnAt];
                }
              }
            }
        }
        result.data.set(sums, (b * cOut + o) * sums.length);
      }
    return result;
  }

  // Rows of `length` elements with mean zero and variance one.
  function standardized(x, length, eps) {
    const result = tensor(x.shape);
    for (let start = 0; start < x.data.length; start += length) {
      const row = x.data.subarray(start, start + length);
      const mean = sum(row) / length;
      const variance = row.reduce((total, value) => total + (value - mean) ** 2, 0) / length;
      row.forEach((value, i) => (result.data[start + i] = (value - mean) / Math.sqrt(variance + eps)));
    }
    return result;
  }

  // A channel's factor and summand, in the shape in which they broadcast over (n, c, ...).
  const perChannel = (x, t) => tensor([t.data.length, ...x.shape.slice(2).map(() => 1)], t.data);
  const affine = (x, weight, bias) => each((v, w, b) => v * w + b)(x, weight ?? 1, bias ?? 0);

  function groupNorm(x, weight, bias, n, c, inner, groups, eps) {
    const standard = standardized(x, (c / groups) * inner, eps);
    return [affine(standard, weight && perChannel(x, weight), bias && perChannel(x, bias))];
  }

  function batchNorm(x, weight, bias, mean, variance, momentum, eps) {
    const scale = unary((v) => 1 / Math.sqrt(v + eps))(variance);
    const standard = each((v, m, s) => (v - m) * s)(x, perChannel(x, mean), perChannel(x, scale));
    return [affine(standard, weight && perChannel(x, weight), bias && perChannel(x, bias))];
  }

  function softmax(x, dim, log) {
    const highest = reduced(x, [dim], true, most);
    const total = reduced(each((v, m) => Math.exp(v - m))(x, highest), [dim], true, sum);
    return each((v, m, s) => (log ? v - m - Math.log(s) : Math.exp(v - m) / s))(x, highest, total);
  }

  // Images (n, c, h, w) at a larger size: each output from the input by weights that depend on its place alone.
  function resampled(x, to, taps) {
    const [n, c, h, w] = x.shape;
    const result = tensor([n, c, ...to]);
    const columns = Array.from({ length: to[1] }, (_, j) => taps(j, w, to[1], 1));
    for (let i = 0, place = 0; i < n * c; i++)
      for (let r = 0; r < to[0]; r++) {
        const across = taps(r, h, to[0], 0);
        for (const along of columns) {
          let value = 0;
          for (const [row, a] of across) for (const [col, b] of along) value += a * b * x.data[(i * h + row) * w + col];
          result.data[place++] = value;
        }
      }
    return result;
  }

  const newSize = (x, to, scales) => to ?? scales.map((scale, i) => Math.floor(x.shape[i + 2] * scale));

  function nearest(x, to, scales) {
    const place = (i, from, length, d) => Math.min(Math.floor(i * (scales ? 1 / scales[d] : from / length)), from - 1);
    return resampled(x, newSize(x, to, scales), (i, from, length, d) => [[place(i, from, length, d), 1]]);
  }

  function bilinear(x, to, corners, scales) {
    return resampled(x, newSize(x, to, scales), (i, from, length, d) => {
      const step = corners ? (length > 1 ? (from - 1) / (length - 1) : 0) : scales ? 1 / scales[d] : from / length;
      const place = corners ? i * step : Math.max(0, (i + 0.5) * step - 0.5);
      const low = Math.min(Math.floor(place), from - 1);
      const part = place - low;
      return [[low, 1 - part], [Math.min(low + 1, from - 1), part]];
    });
  }

  // The error function: its series where that converges fast, else the continued fraction of its complement.
  function erf(x) {
    if (Math.abs(x) > 3) {
      let fraction = 0;
      for (let k = 60; k > 0; k--) fraction = k / 2 / (Math.abs(x) + fraction);
      return Math.sign(x) * (1 - Math.exp(-x * x) / (Math.sqrt(Math.PI) * (Math.abs(x) + fraction)));
    }
    let term = x;
    let total = x;
    for (let k = 1; k < 80; k++) {
      term *= (-x * x) / k;
      total += term / (2 * k + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * total;
  }

  function gelu(x, approximate) {
    const inside = (v) => Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3));
    return unary(approximate === "tanh" ? (v) => 0.5 * v * (1 + inside(v)) : (v) => 0.5 * v * (1 + erf(v / Math.SQRT2)))(x);
  }

  function elu(x, alpha, scale, inputScale) {
    return unary((v) => scale * (v > 0 ? v : alpha * Math.expm1(inputScale * v)))(x);
  }

  // Rounds halves to even, as torch does.
  function round(v) {
    return Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v);
  }

  function converted(x, dtype) {
    if (dtype === "bool") return unary((v) => (v !== 0 ? 1 : 0))(x);
    return /int/.test(dtype ?? "") ? unary(Math.trunc)(x) : x;
  }

  const operations = {
    "getitem": (values, i) => values[i],
    "abs.default": unary(Math.abs),
    "acos.default": unary(Math.acos),
    "asin.default": unary(Math.asin),
    "atan.default": unary(Math.atan),
    "ceil.default": unary(Math.ceil),
    "cos.default": unary(Math.cos),
    "cosh.default": unary(Math.cosh),
    "erf.default": unary(erf),
    "exp.default": unary(Math.exp),
    "expm1.default": unary(Math.expm1),
    "floor.default": unary(Math.floor),
    "isinf.default": unary((v) => (Math.abs(v) === Infinity ? 1 : 0)),
    "isnan.default": unary((v) => (Number.isNaN(v) ? 1 : 0)),
    "log.default": unary(Math.log),
    "log1p.default": unary(Math.log1p),
    "log2.default": unary(Math.log2),
    "logical_not.default": unary((v) => (v === 0 ? 1 : 0)),
    "neg.default": unary((v) => -v),
    "reciprocal.default": unary((v) => 1 / v),
    "relu.default": unary((v) => (v < 0 ? 0 : v)),
    "round.default": unary(round),
    "rsqrt.default": unary((v) => 1 / Math.sqrt(v)),
    "sigmoid.default": unary((v) => 1 / (1 + Math.exp(-v))),
    "sign.default": unary(Math.sign),
    "sin.default": unary(Math.sin),
    "sinh.default": unary(Math.sinh),
    "sqrt.default": unary(Math.sqrt),
    "tan.default": unary(Math.tan),
    "tanh.default": unary(Math.tanh),
    "trunc.default": unary(Math.trunc),
    "gelu.default": gelu,
    "elu.default": elu,
    "leaky_relu.default": (x, slope) => unary((v) => (v < 0 ? slope * v : v))(x),
    "hardtanh.default": (x, low, high) => unary((v) => Math.min(Math.max(v, low), high))(x),
    "clamp.default": (x, low, high) => unary((v) => Math.min(Math.max(v, low ?? -Infinity), high ?? Infinity))(x),
    "clamp.Tensor": (x, low, high) => each((v, a, b) => Math.min(Math.max(v, a), b))(x, low ?? -Infinity, high ?? Infinity),
    "add.Tensor": add,
    "add.Scalar": add,
    "sub.Tensor": (a, b, alpha) => add(a, b, -(alpha ?? 1)),
    "sub.Scalar": (a, b, alpha) => add(a, b, -(alpha ?? 1)),
    "mul.Tensor": each((a, b) => a * b),
    "mul.Scalar": each((a, b) => a * b),
    "div.Tensor": each((a, b) => a / b),
    "div.Scalar": each((a, b) => a / b),
    "maximum.default": each((a, b) => Math.max(a, b)),
    "minimum.default": each((a, b) => Math.min(a, b)),
    "pow.Tensor_Scalar": each(Math.pow),
    "pow.Tensor_Tensor": each(Math.pow),
    "pow.Scalar": each(Math.pow),
    "atan2.default": each(Math.atan2),
    "eq.Scalar": test((a, b) => a === b),
    "eq.Tensor": test((a, b) => a === b),
    "ne.Scalar": test((a, b) => a !== b),
    "ne.Tensor": test((a, b) => a !== b),
    "ge.Scalar": test((a, b) => a >= b),
    "ge.Tensor": test((a, b) => a >= b),
    "gt.Scalar": test((a, b) => a > b),
    "gt.Tensor": test((a, b) => a > b),
    "le.Scalar": test((a, b) => a <= b),
    "le.Tensor": test((a, b) => a <= b),
    "lt.Scalar": test((a, b) => a < b),
    "lt.Tensor": test((a, b) => a < b),
    "logical_and.default": test((a, b) => a && b),
    "logical_or.default": test((a, b) => a || b),
    "bitwise_and.Tensor": each((a, b) => a & b),
    "bitwise_or.Tensor": each((a, b) => a | b),
    "where.self": each((a, b, c) => (a ? b : c)),
    "sum.dim_IntList": (x, dims, keep) => reduced(x, dims, keep, sum),
    "mean.dim": (x, dims, keep) => reduced(x, dims, keep, (row) => sum(row) / row.length),
    "var.correction": (x, dims, correction, keep) => reduced(x, dims, keep, (row) => variance(row, correction)),
    "amax.default": (x, dims, keep) => reduced(x, dims, keep, most),
    "amin.default": (x, dims, keep) => reduced(x, dims, keep, (row) => -most(row.map((v) => -v))),
    "argmax.default": (x, dim, keep) => reduced(x, dim == null ? null : [dim], keep, (row) => row.indexOf(most(row))),
    "any.dim": (x, dim, keep) => reduced(x, [dim], keep, (row) => (row.some((v) => v !== 0) ? 1 : 0)),
    "cumsum.default": cumulated,
    "_softmax.default": (x, dim) => softmax(x, dim, false),
    "_log_softmax.default": (x, dim) => softmax(x, dim, true),
    "mm.default": mm,
    "bmm.default": bmm,
    "addmm.default": (bias, a, b, beta, alpha) => add(scaled(bias, beta), scaled(mm(a, b), alpha)),
    "convolution.default": convolution,
    "native_layer_norm.default": (x, shape, w, b, eps) => [affine(standardized(x, size(shape), eps), w, b)],
    "native_group_norm.default": groupNorm,
    "_native_batch_norm_legit_no_training.default": batchNorm,
    "embedding.default": (weight, index) => rows(weight, 0, index),
    "index_select.default": rows,
    "index.Tensor": indexed,
    "upsample_nearest2d.vec": nearest,
    "upsample_bilinear2d.vec": bilinear,
    "view.default": reshaped,
    "reshape.default": reshaped,
    "_unsafe_view.default": reshaped,
    "permute.default": permuted,
    "expand.default": expand,
    "unsqueeze.default": unsqueeze,
    "squeeze.dims": squeeze,
    "squeeze.dim": (x, dim) => squeeze(x, [dim]),
    "slice.Tensor": slice,
    "select.int": select,
    "cat.default": cat,
    "split_with_sizes.default": split,
    "constant_pad_nd.default": padded,
    "flip.default": (x, dims) => dims.reduce((t, d) => rows(t, d, reversed(t.shape[at(d, t.shape.length)])), x),
    "clone.default": (x) => x,
    "full_like.default": (x, value) => unary(() => value)(x),
    "alias.default": (x) => x,
    "_to_copy.default": converted,
  };

  const reversed = (length) => tensor([length], Float32Array.from({ length }, (_, i) => length - 1 - i));

  function floats(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  function argument(value, values) {
    if (Array.isArray(value)) return value.map((each) => argument(each, values));
    if (value === null || typeof value !== "object") return value;
    return "value" in value ? values[value.value] : Number(value.number);
  }

  // From a graph to a function of its inputs, tensors by name.
  function compiled(graph) {
    const constants = graph.constants.map(({ shape, data }) => tensor(shape, floats(data)));
    return (inputs) => {
      const values = [...graph.inputs.map((name) => inputs[name]), ...constants];
      for (const { name, args } of graph.operations)
        values.push(operations[name](...args.map((each) => argument(each, values))));
      return values[graph.output];
    };
  }

  return { compiled, floats, tensor };
})();
