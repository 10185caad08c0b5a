// Reads the golden samples of a version: an .npz with an index (controlplane/domain/samples.py).

const READERS = {
  // Nine digits name each 32-bit value; the rest would be noise for people.
  "<f4": (view, at) => Number(view.getFloat32(at, true).toPrecision(9)),
  "<f8": (view, at) => view.getFloat64(at, true),
  "<f2": (view, at) => half(view.getUint16(at, true)),
  "|i1": (view, at) => view.getInt8(at),
  "|u1": (view, at) => view.getUint8(at),
  "|b1": (view, at) => view.getUint8(at) !== 0,
  "<i2": (view, at) => view.getInt16(at, true),
  "<u2": (view, at) => view.getUint16(at, true),
  "<i4": (view, at) => view.getInt32(at, true),
  "<u4": (view, at) => view.getUint32(at, true),
  // JSON of a browser has no exact integers above 2**53; the values of samples are small.
  "<i8": (view, at) => Number(view.getBigInt64(at, true)),
  "<u8": (view, at) => Number(view.getBigUint64(at, true)),
};

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return the files of a ZIP archive by name, from its central directory. */
async function unzip(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let count = view.getUint16(end + 10, true); count > 0; count -= 1) {
    const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
    const [nameSize, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, nameSize));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const data = new Uint8Array(buffer, start, size);
    files.set(name, method === 8 ? await inflate(data) : data);
    at += 46 + nameSize + extra + comment;
  }
  return files;
}

function array(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[6] >= 2;
  const headerSize = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (wide ? 12 : 10) + headerSize;
  const header = new TextDecoder("latin1").decode(bytes.subarray(start - headerSize, start));
  const type = /'descr': '([^']+)'/.exec(header)[1];
  const width = Number(type.slice(2));
  const values = [];
  for (let at = start; at < bytes.length; at += width) values.push(READERS[type](view, at));
  return values;
}

function strings(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = [];
  for (let at = 0; at < bytes.length; ) {
    const size = view.getUint32(at, true);
    values.push(new TextDecoder().decode(bytes.subarray(at + 4, at + 4 + size)));
    at += 4 + size;
  }
  return values;
}

/** Nest flat values by a shape: what people read and edit. */
export function nest(values, shape) {
  if (shape.length <= 1) return values;
  const step = values.length / (shape[0] || 1);
  return Array.from({ length: shape[0] }, (_, index) => nest(values.slice(index * step, (index + 1) * step), shape.slice(1)));
}

/** Return the samples: [{ inputs: { name: nested values }, outputs }]. */
export async function readSamples(buffer) {
  const files = await unzip(buffer);
  const index = JSON.parse(new TextDecoder().decode(Uint8Array.from(array(files.get("index.npy")))));
  const tensors = (side) =>
    Object.fromEntries(
      Object.entries(side).map(([name, entry]) => {
        const values = array(files.get(`${entry.key}.npy`));
        return [name, nest(entry.bytes ? strings(Uint8Array.from(values)) : values, entry.shape)];
      }),
    );
  return index.map((sample) => ({ inputs: tensors(sample.inputs), outputs: tensors(sample.outputs) }));
}
