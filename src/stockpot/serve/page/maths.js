/** Formulas as readable text: signs instead of commands, raised and lowered figures where Unicode has them. It draws nothing. */

const SIGNS = {
  alpha: "α",
  beta: "β",
  gamma: "γ",
  delta: "δ",
  epsilon: "ε",
  varepsilon: "ε",
  zeta: "ζ",
  eta: "η",
  theta: "θ",
  iota: "ι",
  kappa: "κ",
  lambda: "λ",
  mu: "μ",
  nu: "ν",
  xi: "ξ",
  pi: "π",
  rho: "ρ",
  sigma: "σ",
  tau: "τ",
  phi: "φ",
  varphi: "φ",
  chi: "χ",
  psi: "ψ",
  omega: "ω",
  Gamma: "Γ",
  Delta: "Δ",
  Theta: "Θ",
  Lambda: "Λ",
  Xi: "Ξ",
  Pi: "Π",
  Sigma: "Σ",
  Phi: "Φ",
  Psi: "Ψ",
  Omega: "Ω",
  times: "×",
  cdot: "·",
  div: "÷",
  pm: "±",
  mp: "∓",
  leq: "≤",
  le: "≤",
  geq: "≥",
  ge: "≥",
  neq: "≠",
  ne: "≠",
  approx: "≈",
  equiv: "≡",
  sim: "∼",
  propto: "∝",
  infty: "∞",
  partial: "∂",
  nabla: "∇",
  sum: "∑",
  prod: "∏",
  int: "∫",
  in: "∈",
  notin: "∉",
  subset: "⊂",
  subseteq: "⊆",
  cup: "∪",
  cap: "∩",
  emptyset: "∅",
  forall: "∀",
  exists: "∃",
  neg: "¬",
  land: "∧",
  lor: "∨",
  to: "→",
  rightarrow: "→",
  Rightarrow: "⇒",
  implies: "⇒",
  iff: "⇔",
  leftarrow: "←",
  mapsto: "↦",
  ldots: "…",
  dots: "…",
  cdots: "⋯",
  quad: "  ",
  qquad: "    ",
  circ: "∘",
  angle: "∠",
  perp: "⊥",
  parallel: "∥",
  sqrt: "√",
  hbar: "ℏ",
  ell: "ℓ",
  left: "",
  right: "",
  displaystyle: "",
  limits: "",
  log: "log",
  ln: "ln",
  exp: "exp",
  sin: "sin",
  cos: "cos",
  tan: "tan",
  max: "max",
  min: "min",
  lim: "lim",
};
const RAISED = {
  0: "⁰",
  1: "¹",
  2: "²",
  3: "³",
  4: "⁴",
  5: "⁵",
  6: "⁶",
  7: "⁷",
  8: "⁸",
  9: "⁹",
  "+": "⁺",
  "-": "⁻",
  n: "ⁿ",
  i: "ⁱ",
};
const LOWERED = {
  0: "₀",
  1: "₁",
  2: "₂",
  3: "₃",
  4: "₄",
  5: "₅",
  6: "₆",
  7: "₇",
  8: "₈",
  9: "₉",
  "+": "₊",
  "-": "₋",
  i: "ᵢ",
  j: "ⱼ",
  n: "ₙ",
  k: "ₖ",
  t: "ₜ",
};

function moved(text, signs, mark) {
  return [...text].every((sign) => signs[sign])
    ? [...text].map((sign) => signs[sign]).join("")
    : text.length === 1
      ? `${mark}${text}`
      : `${mark}(${text})`;
}

/**
 * Write a formula as text.
 * @param {string} source LaTeX, as models write it
 */
export function maths(source) {
  if (source.length > 4000) return source;
  return source
    .replace(/\\(?:text|mathrm|mathbf|mathbb|mathcal|operatorname)\{([^{}]{0,200})\}/g, "$1")
    .replace(
      /\\[dt]?frac\{([^{}]{0,200})\}\{([^{}]{0,200})\}/g,
      (_, above, below) => `${/^\w+$/.test(above) ? above : `(${above})`}/${/^\w+$/.test(below) ? below : `(${below})`}`,
    )
    .replace(/\\sqrt\{([^{}]{0,200})\}/g, "√($1)")
    .replace(/\\([A-Za-z]{1,20})[ ]?/g, (whole, name) => SIGNS[name] ?? whole)
    .replace(/\^\{([^{}]{1,60})\}|\^(\w)/g, (_, many, one) => moved(many ?? one, RAISED, "^"))
    .replace(/_\{([^{}]{1,60})\}|_(\w)/g, (_, many, one) => moved(many ?? one, LOWERED, "_"))
    .replace(/\\([{}%$&#_,;:! ])/g, (_, sign) => (",;:! ".includes(sign) ? " " : sign))
    .replace(/\\\\/g, "\n");
}
