/** k6 has it since 1.0; its types do not. */
declare const crypto: { randomUUID(): string }
