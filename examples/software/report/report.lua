-- Prime gaps as JSON: a little work for a freshly built interpreter.
local sieve, gaps, last = {}, {}, nil
for n = 2, 200000 do
  if not sieve[n] then
    if last then gaps[n - last] = (gaps[n - last] or 0) + 1 end
    last = n
    for m = n * n, 200000, n do sieve[m] = true end
  end
end
local keys = {}
for gap in pairs(gaps) do keys[#keys + 1] = gap end
table.sort(keys)
for i, gap in ipairs(keys) do keys[i] = string.format('{"gap":%d,"count":%d}', gap, gaps[gap]) end
print("[" .. table.concat(keys, ",") .. "]")
