"""How a merged model becomes a smaller one: one module and one function a family of encodings."""
